"""Anchors, their targets and proposals against loops, and SPEC 8.15's first anchor."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.nn import functional as F

from sere_jax.models.dense import rpn
from sere_jax.types import Objects
from tests import micro
from tests.models.dense.test_upernet import maps, torch_map, variables
from tests.oracles import detection

STRIDES = (4, 8, 16)
LEVELS = maps((12, 16), (6, 8), (3, 4), width=6)
ANCHORS = rpn.pyramid_anchors(LEVELS, STRIDES)
SIZE = (44, 60)  # of the image in 48 x 64 pixels


def by_loops() -> np.ndarray:
    boxes = []
    for level, stride in zip(LEVELS, STRIDES, strict=True):
        for row in range(level.shape[1]):
            for column in range(level.shape[2]):
                for ratio in (0.5, 1.0, 2.0):
                    height = 8 * stride * ratio**0.5
                    width = (8 * stride) ** 2 / height
                    x, y = column * stride, row * stride
                    boxes.append((x - width / 2, y - height / 2, x + width / 2, y + height / 2))
    return np.array(boxes)


def test_anchors_start_at_the_corner_of_the_image():
    np.testing.assert_allclose(ANCHORS.boxes, by_loops(), atol=1e-4)
    assert ANCHORS.boxes[1].tolist() == [-16, -16, 16, 16] and ANCHORS.counts == (576, 144, 36)


def test_the_head_is_torchs_and_its_axis_goes_over_levels_rows_columns_and_ratios():
    module = rpn.RegionProposals(5)
    weights = variables(module, LEVELS)
    layers = {name: torch.tensor(np.asarray(leaf["kernel"])) for name, leaf in weights["params"].items()}
    biases = {name: torch.tensor(np.asarray(leaf["bias"])) for name, leaf in weights["params"].items()}
    logits, codes = [], []
    for x in LEVELS:
        hidden = F.relu(F.conv2d(torch_map(x), layers["conv"].permute(3, 2, 0, 1), biases["conv"], padding=1)).permute(0, 2, 3, 1)
        logits.append((hidden @ layers["objectness"] + biases["objectness"]).reshape(2, -1))
        codes.append((hidden @ layers["codes"] + biases["codes"]).reshape(2, -1, 4))
    scores = module.apply({"params": weights["params"]}, LEVELS)
    np.testing.assert_allclose(scores.objectness, torch.cat(logits, 1).numpy(), atol=1e-5, rtol=1e-4)
    np.testing.assert_allclose(scores.codes, torch.cat(codes, 1).numpy(), atol=1e-5, rtol=1e-4)


def test_targets_of_anchors_are_those_of_loops():
    boxes = np.array([[3, 5, 40, 36], [20, 10, 52, 40], [30, 30, 38, 36], [0, 0, 0, 0]], np.float32)
    objects = Objects(boxes, np.zeros(4, np.int32), np.array([True, True, True, False]))
    count = ANCHORS.boxes.shape[0]  # all that can be: up to half positive, all background
    targets = micro.jit(lambda key: rpn.anchor_targets(key, ANCHORS.boxes, objects, jnp.array(SIZE), count))(jax.random.key(0))
    every = by_loops()
    inside = [i for i, box in enumerate(every) if box[0] >= 0 and box[1] >= 0 and box[2] < SIZE[1] and box[3] < SIZE[0]]
    assigned = dict(zip(inside, detection.assigned(ANCHORS.boxes[inside], boxes[:3], 0.7, 0.3, 0.3), strict=True))
    positive = {i for i, number in assigned.items() if number >= 0}
    valid = np.asarray(targets.valid)
    index, is_positive = np.asarray(targets.index)[valid], np.asarray(targets.positive)[valid]
    assert positive and set(index[is_positive]) == positive
    assert set(index[~is_positive]) == {i for i, number in assigned.items() if number == -1}
    for at, code in zip(index[is_positive], np.asarray(targets.codes)[valid][is_positive], strict=True):
        np.testing.assert_allclose(code, detection.code(boxes[assigned[at]], every[at]), atol=1e-5)
    assert not np.asarray(targets.codes)[valid][~is_positive].any()


def test_proposals_are_the_best_of_every_level_after_suppression():
    rng = np.random.default_rng(0)
    total = ANCHORS.boxes.shape[0]
    scores, codes = rng.normal(size=total).astype(np.float32), (rng.normal(size=(total, 4)) * 0.3).astype(np.float32)
    proposals = micro.jit(lambda s, c: rpn.propose(s, c, ANCHORS, jnp.array(SIZE), per_level=20, count=30))(scores, codes)
    survivors, start = [], 0
    for count in ANCHORS.counts:
        best = start + np.argsort(-scores[start : start + count])[:20]
        moved = [detection.decoded(codes[i], ANCHORS.boxes[i]) for i in best]
        clipped = [np.clip(box, 0, [SIZE[1], SIZE[0]] * 2) for box in moved]
        level: list[tuple[float, np.ndarray]] = []
        for i, box in zip(best, clipped, strict=True):
            if box[2] > box[0] and box[3] > box[1] and all(detection.iou(box, other) <= 0.7 for _, other in level):
                level.append((scores[i], box))
        survivors += level
        start += count
    expected = [box for _, box in sorted(survivors, key=lambda pair: -pair[0])[:30]]
    valid = np.asarray(proposals.valid)
    assert valid.sum() == len(expected) and not valid[len(expected) :].any()
    np.testing.assert_allclose(np.asarray(proposals.boxes)[valid], expected, atol=1e-3)
