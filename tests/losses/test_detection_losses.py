"""The losses of a detector on a hand-made scene, against sums over its boxes and cells."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from sere_jax.losses import detection
from tests.oracles import detection as oracle

# Two images with four sampled boxes each: positive or not, and padding.
POSITIVE = np.array([[True, True, False, False], [True, False, False, False]])
VALID = np.array([[True, True, True, True], [True, True, False, False]])
SAMPLED = 6
RNG = np.random.default_rng(0)
CORNERS = np.array([0.0, 0.0, 10.0, 8.0]) + RNG.uniform(-2, 2, (2, 4, 4))
TARGETS = np.array([1.0, 1.0, 9.0, 9.0]) + RNG.uniform(-2, 2, (2, 4, 4))


def pairs(where: np.ndarray) -> list[tuple[int, int]]:
    return list(zip(*np.nonzero(where), strict=True))


def as_float(x: np.ndarray) -> jnp.ndarray:
    return jnp.asarray(x, jnp.float32)


def test_objectness_counts_every_sampled_anchor():
    logits = RNG.normal(size=(2, 4)) * 3
    expected = sum(oracle.bce(logits[at], POSITIVE[at]) for at in pairs(VALID)) / SAMPLED
    assert float(detection.objectness_loss(as_float(logits), POSITIVE, VALID)) == pytest.approx(expected, rel=1e-5)


def test_codes_of_positive_anchors_are_divided_by_all_anchors():
    codes, targets = RNG.normal(size=(2, 4, 4)) * 0.2, RNG.normal(size=(2, 4, 4)) * 0.2  # errors on both sides of 1/9
    positive = pairs(POSITIVE)
    expected = sum(oracle.smooth_l1(codes[at][i] - targets[at][i], 1 / 9) for at in positive for i in range(4)) / SAMPLED
    assert float(detection.code_loss(as_float(codes), as_float(targets), POSITIVE, VALID)) == pytest.approx(expected, rel=1e-5)


def test_classes_and_the_background_of_every_sampled_box():
    logits, labels = RNG.normal(size=(2, 4, 3)), np.where(POSITIVE, 1, 2)
    expected = sum(oracle.cross_entropy(logits[at], labels[at]) for at in pairs(VALID)) / SAMPLED
    assert float(detection.class_loss(as_float(logits), labels, VALID)) == pytest.approx(expected, rel=1e-5)


def test_ten_times_giou_of_positive_boxes_over_all_sampled_ones():
    expected = 10 * sum(1 - oracle.giou(CORNERS[at], TARGETS[at]) for at in pairs(POSITIVE)) / SAMPLED
    assert float(detection.box_loss(as_float(CORNERS), as_float(TARGETS), POSITIVE, VALID)) == pytest.approx(expected, rel=1e-4)


def test_masks_are_the_mean_over_their_cells():
    logits, targets = RNG.normal(size=(2, 4, 3, 3)), RNG.random((2, 4, 3, 3)) < 0.5
    cells = [oracle.bce(logits[at][i, j], targets[at][i, j]) for at in pairs(POSITIVE) for i in range(3) for j in range(3)]
    assert float(detection.mask_loss(as_float(logits), targets, POSITIVE)) == pytest.approx(np.mean(cells), rel=1e-5)


def test_nothing_sampled_costs_nothing():
    nothing = np.zeros((2, 4), bool)
    boxes = as_float(CORNERS)
    values = [
        detection.objectness_loss(boxes[..., 0], nothing, nothing),
        detection.code_loss(boxes, boxes + 1, nothing, nothing),
        detection.class_loss(boxes, np.zeros((2, 4), int), nothing),
        detection.box_loss(boxes, boxes + 1, nothing, nothing),
        detection.mask_loss(jnp.ones((2, 4, 3, 3)), np.zeros((2, 4, 3, 3), bool), nothing),
    ]
    assert values == [0.0] * 5
