"""Suppression against the greedy loop, on sets with many ties and at thresholds where tiled versions fail."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sere_jax.ops.boxes import iou
from sere_jax.ops.nms import nms

COUNT = 40


def _greedy(boxes: np.ndarray, scores: np.ndarray, threshold: float, groups: np.ndarray) -> list[bool]:
    """By falling score, ties by position; areas and overlaps in exact integers."""

    def overlaps(a: np.ndarray, b: np.ndarray) -> bool:
        width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        shared = max(width, 0) * max(height, 0)
        union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
        return shared > threshold * union

    kept: list[int] = []
    for i in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
        if not any(groups[i] == groups[j] and overlaps(boxes[i], boxes[j]) for j in kept):
            kept.append(i)
    return [i in kept for i in range(len(scores))]


@functools.cache
def _batched(threshold: float) -> object:
    return jax.jit(jax.vmap(lambda boxes, scores, groups: nms(boxes, scores, threshold, groups=groups)))


# 0.31, 0.53 and 0.71 are no quotients of small integers, so that rounding cannot decide.
@pytest.mark.parametrize("threshold", [0.31, 0.53, 0.71])
def test_a_thousand_crowded_sets_with_ties_are_as_greedy_has_them(threshold: float) -> None:
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 12, (350, COUNT, 2))
    boxes = np.concatenate([corners, corners + rng.integers(1, 14, corners.shape)], axis=-1)
    scores, groups = rng.integers(0, 6, (350, COUNT)), rng.integers(0, 2, (350, COUNT))
    kept = _batched(threshold)(jnp.asarray(boxes, jnp.float32), jnp.asarray(scores, jnp.float32), jnp.asarray(groups))  # type: ignore[operator]
    for i in range(350):
        assert kept[i].tolist() == _greedy(boxes[i], scores[i], threshold, groups[i]), i


def test_no_two_kept_boxes_overlap_more_than_the_threshold() -> None:
    rng = np.random.default_rng(1)
    corners = rng.uniform(0, 50, (200, 2)).astype(np.float32)
    boxes = jnp.asarray(np.concatenate([corners, corners + rng.uniform(5, 40, (200, 2)).astype(np.float32)], axis=1))
    kept = boxes[nms(boxes, jnp.asarray(rng.uniform(size=200), jnp.float32), 0.3)]
    overlaps = iou(kept[:, None], kept[None]) - jnp.eye(len(kept))
    assert 1 < len(kept) < 200 and float(jnp.max(overlaps)) <= 0.3


def test_a_chain_is_cut_box_by_box() -> None:
    # Each overlaps the next alone: greedy keeps every other one, which takes as many turns as there are boxes.
    left = jnp.arange(12.0) * 4
    boxes = jnp.stack([left, jnp.zeros(12), left + 10, jnp.full(12, 10.0)], axis=1)
    assert nms(boxes, -jnp.arange(12.0), 0.4).tolist() == [True, False] * 6


def test_padding_neither_stays_nor_suppresses() -> None:
    boxes = jnp.array([[0.0, 0.0, 9.0, 9.0]] * 3)
    assert nms(boxes, jnp.array([9.0, 1.0, 2.0]), 0.5, valid=jnp.array([False, True, True])).tolist() == [False, False, True]
