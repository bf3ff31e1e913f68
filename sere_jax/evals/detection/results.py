"""Detections in the form of COCO's result files: boxes and run lengths in pixels of the annotated image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from sere_jax.data.annotations.regions import encode_region
from sere_jax.data.sources.annotation import Size
from sere_jax.types import Detections

_THRESHOLD = 0.5  # probability from which a pixel belongs to the object


def results_of(detections: Detections, size: Size, *, image_id: int, frame: Size, class_ids: Sequence[int]) -> list[dict[str, Any]]:
    """The valid detections of one image, each with image_id, category_id, bbox [left, top, width, height], score, and with masks
    its segmentation as run lengths.

    `size` is the height and width in which the detector saw the image, `frame` those in which it is annotated. `class_ids` are the
    data set's own numbers of the labels. Boxes are cut at the edges of the frame.
    """
    scale = np.array([frame[1] / size[1], frame[0] / size[0]] * 2)
    limits = np.array([frame[1], frame[0]] * 2, np.float64)
    results = []
    for row in np.flatnonzero(np.asarray(detections.valid)):
        box = np.clip(np.asarray(detections.boxes[row], np.float64) * scale, 0, limits)
        left, top, right, bottom = box.tolist()
        result: dict[str, Any] = {
            "image_id": image_id,
            "category_id": int(class_ids[int(detections.labels[row])]),
            "bbox": [left, top, right - left, bottom - top],
            "score": float(detections.scores[row]),
        }
        if detections.masks is not None:
            result["segmentation"] = encode_region(paste(np.asarray(detections.masks[row]), box, frame))
        results.append(result)
    return results


def paste(mask: Float[np.ndarray, "m m"], box: Float[np.ndarray, "4"], frame: Size) -> Bool[np.ndarray, "H W"]:
    """The mask of an image of this height and width from probabilities on a grid over a box (left, top, right, bottom).

    The centre of each pixel asks the grid by bilinear interpolation between the centres of its cells; beyond the outermost centres the
    probability falls to 0 within a cell. The pixel belongs to the object from one half on. Source: He et al. 2017, as MMDetection pastes.

    >>> paste(np.ones((2, 2)), np.array([1.0, 0.0, 3.0, 2.0]), (2, 4)).astype(int).tolist()
    [[0, 1, 1, 0], [0, 1, 1, 0]]
    """
    result = np.zeros(frame, np.bool_)
    spans = [_span(box[axis], box[axis + 2], frame[1 - axis], mask.shape[1 - axis]) for axis in (1, 0)]
    if any(first >= last for first, last, _ in spans):
        return result
    (top, bottom, rows), (left, right, columns) = spans
    result[top:bottom, left:right] = rows @ mask.astype(np.float64) @ columns.T >= _THRESHOLD
    return result


def _span(start: float, end: float, length: int, cells: int) -> tuple[int, int, Float[np.ndarray, "p m"]]:
    """The pixels that a side of the box may reach, and the weight of each cell in each of them."""
    side = end - start
    if side <= 0:
        return 0, 0, np.zeros((0, cells))
    margin = side / cells / 2
    first, last = max(0, math.floor(start - margin)), min(length, math.ceil(end + margin))
    positions = (np.arange(first, last) + 0.5 - start) / side * cells - 0.5
    return first, last, np.maximum(1.0 - np.abs(positions[:, None] - np.arange(cells)), 0.0)
