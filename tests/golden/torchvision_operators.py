"""What torchvision's detection operators answer on small inputs, kept in torchvision_operators.json beside this file.

`tests/ops/test_torchvision_operators.py` compares `sere_jax.ops` with it. The suite needs no torchvision. Made anew in an environment
of its own by

    python -m venv V && V/bin/pip install torch==2.14.1 torchvision==0.29.1 && V/bin/python tests/golden/torchvision_operators.py

All inputs are multiples of 1/8, so that they are exact in the file. Where torchvision's recipe is not MMDetection's, which is
reproduced here, the test says how the two differ.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torchvision
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import boxes as box_ops
from torchvision.ops import roi_align
from torchvision.ops.poolers import LevelMapper

FILE = Path(__file__).with_suffix(".json")
THRESHOLDS = (0.3, 0.5, 0.7)


def eighths(random: torch.Generator, shape: tuple[int, ...], low: float, high: float) -> torch.Tensor:
    return torch.randint(int(8 * low), int(8 * high), shape, generator=random) / 8


def some_boxes(random: torch.Generator, count: int, corner: float, low: float, high: float) -> torch.Tensor:
    corners = eighths(random, (count, 2), 0, corner)
    return torch.cat([corners, corners + eighths(random, (count, 2), low, high)], dim=1)


def boxes(random: torch.Generator) -> dict[str, Any]:
    a, b = some_boxes(random, 6, 40, 1, 40), some_boxes(random, 5, 40, 1, 40)
    return {
        "a": a,
        "b": b,
        "areas": box_ops.box_area(a),
        "iou": box_ops.box_iou(a, b),
        "giou": box_ops.generalized_box_iou(a, b),
        "clipped": box_ops.clip_boxes_to_image(a - 8, (32, 48)),
    }


def suppression(random: torch.Generator) -> dict[str, Any]:
    """Crowded boxes; twelve scores for forty boxes, so that many are equal."""
    crowd, scores = some_boxes(random, 40, 16, 8, 24), eighths(random, (40,), 0, 1.5)
    groups = torch.randint(0, 2, (40,), generator=random)
    return {
        "boxes": crowd,
        "scores": scores,
        "groups": groups,
        "kept": {str(limit): sorted(box_ops.nms(crowd, scores, limit).tolist()) for limit in THRESHOLDS},
        "kept_of_groups": {str(limit): sorted(box_ops.batched_nms(crowd, scores, groups, limit).tolist()) for limit in THRESHOLDS},
    }


def alignment(random: torch.Generator) -> dict[str, Any]:
    """Boxes inside, tall, across the border, beyond it, and smaller than a cell."""
    features = torch.randint(-8, 9, (6, 7, 2), generator=random).float()
    regions = torch.tensor([[8, 8, 40, 40], [3.25, 5, 21.75, 47], [-30, -20, 25, 30], [40, 30, 120, 60], [17.25, 9.875, 17.875, 10.5]])
    with_image = torch.cat([torch.zeros(len(regions), 1), regions], dim=1)
    aligned = roi_align(features.permute(2, 0, 1)[None], with_image, 3, spatial_scale=1 / 8, sampling_ratio=-1, aligned=True)
    sides = torch.tensor([1.0, 110, 114, 222, 226, 446, 450, 2000])
    squares = torch.stack([torch.zeros_like(sides)] * 2 + [sides, sides], dim=1)
    levels = LevelMapper(2, 5)([squares])
    return {"features": features, "boxes": regions, "aligned": aligned.permute(0, 2, 3, 1), "sides": sides, "levels": levels}


def anchors(random: torch.Generator) -> dict[str, Any]:
    """Two levels of strides 4 and 8 of an image of 16 x 24."""
    generator = AnchorGenerator(sizes=((32,), (64,)), aspect_ratios=((0.5, 1.0, 2.0),) * 2)
    maps = [torch.zeros(1, 1, 4, 6), torch.zeros(1, 1, 2, 3)]
    (answer,) = generator(ImageList(torch.zeros(1, 3, 16, 24), [(16, 24)]), maps)
    return {"levels": [[4, 6, 4, 32.0], [2, 3, 8, 64.0]], "anchors": answer}


def matching(random: torch.Generator) -> dict[str, Any]:
    """Three objects and boxes around them; no box is the best of one object and overlaps another one more."""
    objects = torch.tensor([[0.0, 0, 24, 16], [32, 0, 48, 32], [8, 40, 40, 56]])
    around = objects.repeat_interleave(10, dim=0) + eighths(random, (30, 4), -6, 6)
    candidates = torch.cat([around, some_boxes(random, 6, 40, 4, 12)])
    overlaps = box_ops.box_iou(objects, candidates)
    return {
        "objects": objects,
        "boxes": candidates,
        "anchors": Matcher(0.7, 0.3, allow_low_quality_matches=True)(overlaps),
        "stage": Matcher(0.5, 0.5)(overlaps),
    }


def coding(random: torch.Generator) -> dict[str, Any]:
    coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
    aims, references, codes = some_boxes(random, 6, 40, 4, 40), some_boxes(random, 6, 40, 4, 40), eighths(random, (6, 4), -3, 3)
    codes[0, 2] = 40.0  # clipped
    return {
        "boxes": aims,
        "references": references,
        "codes": codes,
        "encoded": coder.encode_single(aims, references),
        "decoded": coder.decode_single(codes, references),
    }


def masks(random: torch.Generator) -> dict[str, Any]:
    """Shares of the mask in the cells of regions: objects of 16 x 16 pixels in images of 40 x 40, and an ellipse of 120 x 80 pixels."""
    cells = torch.randint(0, 2, (4, 16, 16), generator=random)
    corners = torch.randint(0, 24, (4, 2), generator=random)
    pixels = torch.zeros(4, 1, 40, 40)
    for image, object_cells, (left, top) in zip(pixels, cells, corners.tolist(), strict=True):
        image[0, top : top + 16, left : left + 16] = object_cells
    objects = torch.cat([corners, corners + 16], dim=1).float()
    regions = objects + eighths(random, (4, 4), -5, 5)
    shares = roi_align(pixels, torch.cat([torch.arange(4.0)[:, None], regions], dim=1), 7, 1.0, -1, aligned=True)[:, 0]
    rows, columns = torch.meshgrid(torch.arange(120), torch.arange(160), indexing="ij")
    ellipse = (((columns + 0.5 - 80) / 60) ** 2 + ((rows + 0.5 - 60) / 40) ** 2 < 1).float()
    around = torch.tensor([[20.0, 20, 140, 100], [10, 25, 120, 110], [40, 5, 150, 90], [50, 40, 110, 80]])
    of_ellipse = roi_align(ellipse[None, None], torch.cat([torch.zeros(4, 1), around], dim=1), 28, 1.0, -1, aligned=True)[:, 0] >= 0.5
    return {
        "cells": ["".join(map(str, one.flatten().tolist())) for one in cells],
        "objects": objects,
        "regions": regions,
        "shares": shares,
        "ellipse_regions": around,
        "ellipse": ["".join(map(str, one.int().flatten().tolist())) for one in of_ellipse],
    }


def rounded(value: Any) -> Any:
    """Lists of numbers of at most seven digits, as many as float32 has."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, torch.Tensor):
        return rounded(value.tolist())
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return float(f"{value:.7g}") if isinstance(value, float) else value


def main() -> None:
    random = torch.Generator().manual_seed(14)
    parts = (boxes, suppression, alignment, anchors, matching, coding, masks)
    golden = {"torch": torch.__version__.split("+")[0], "torchvision": torchvision.__version__.split("+")[0]}
    lines = [f'"{key}": {json.dumps(value)}' for key, value in golden.items()]
    lines += [f'"{part.__name__}": {json.dumps(rounded(part(random)), separators=(",", ":"))}' for part in parts]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
