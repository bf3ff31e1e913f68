"""Suppression against the greedy loop, on sets with many ties and at thresholds where tiled versions fail."""

from __future__ import annotations

import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sere_jax.ops.boxes import iou
from sere_jax.ops.nms import nms

COUNT = 40


def _greedy(boxes: np.ndarray, scores: np.ndarray, threshold: Fraction, groups: np.ndarray) -> list[bool]:
    """By falling score, ties by position; areas, overlaps and the threshold are exact."""

    def overlaps(a: np.ndarray, b: np.ndarray) -> bool:
        width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        shared = max(width, 0) * max(height, 0)
        union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
        return int(shared) * threshold.denominator > int(union) * threshold.numerator

    kept: list[int] = []
    for i in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
        if not any(groups[i] == groups[j] and overlaps(boxes[i], boxes[j]) for j in kept):
            kept.append(i)
    return [i in kept for i in range(len(scores))]


@functools.cache
def _batched(threshold: float) -> object:
    return jax.jit(jax.vmap(lambda boxes, scores, groups: nms(boxes, scores, threshold, groups=groups)))


# Overlaps of small whole boxes are often equal to a threshold, and an equal one does not suppress.
@pytest.mark.parametrize("threshold", ["0.3", "0.5", "0.7"])
def test_a_thousand_crowded_sets_with_ties_are_as_greedy_has_them(threshold: str) -> None:
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 12, (350, COUNT, 2))
    boxes = np.concatenate([corners, corners + rng.integers(1, 14, corners.shape)], axis=-1)
    scores, groups = rng.integers(0, 6, (350, COUNT)), rng.integers(0, 2, (350, COUNT))
    kept = _batched(float(threshold))(jnp.asarray(boxes, jnp.float32), jnp.asarray(scores, jnp.float32), jnp.asarray(groups))  # type: ignore[operator]
    for i in range(350):
        assert kept[i].tolist() == _greedy(boxes[i], scores[i], Fraction(threshold), groups[i]), i


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), threshold=st.sampled_from([0.3, 0.5, 0.7]), spread=st.floats(0, 60), scores=st.integers(1, COUNT))
def test_what_is_kept_overlaps_little_and_what_is_not_overlaps_a_better_box(
    seed: int, threshold: float, spread: float, scores: int
) -> None:
    """Of any boxes: two that are kept overlap by the threshold at most, and each other one is over it with a kept one of no lower score."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, spread, (COUNT, 2))
    boxes = jnp.asarray(np.concatenate([corners, corners + rng.uniform(5, 40, (COUNT, 2))], axis=1), jnp.float32)
    score = rng.integers(0, scores, COUNT).astype(np.float32)
    [kept] = np.asarray(_batched(threshold)(boxes[None], score[None], np.zeros((1, COUNT), np.int32)))  # type: ignore[operator]
    over = np.asarray(iou(boxes[:, None], boxes[None])) > np.float32(threshold)
    np.fill_diagonal(over, False)
    assert kept.any() and not over[np.ix_(kept, kept)].any()
    assert (over & kept & (score >= score[:, None])).any(axis=1)[~kept].all()


def test_a_chain_is_cut_box_by_box() -> None:
    # Each overlaps the next alone: greedy keeps every other one, which takes as many turns as there are boxes.
    left = jnp.arange(12.0) * 4
    boxes = jnp.stack([left, jnp.zeros(12), left + 10, jnp.full(12, 10.0)], axis=1)
    assert nms(boxes, -jnp.arange(12.0), 0.4).tolist() == [True, False] * 6


def test_padding_neither_stays_nor_suppresses() -> None:
    boxes = jnp.array([[0.0, 0.0, 9.0, 9.0]] * 3)
    assert nms(boxes, jnp.array([9.0, 1.0, 2.0]), 0.5, valid=jnp.array([False, True, True])).tolist() == [False, False, True]
