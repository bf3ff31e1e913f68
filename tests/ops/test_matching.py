"""Matching of boxes to objects, sampling, and mask targets against loops over boxes and cells."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sere_jax.ops.matching import BACKGROUND, IGNORED, mask_targets, match, sample
from tests import micro
from tests.oracles import detection

LIMITS = {"positive": 0.7, "negative": 0.3}
_match = jax.jit(match, static_argnames=("positive", "negative", "lowest"), compiler_options=micro.FAST_COMPILE)
_sample = jax.jit(sample, static_argnums=(2, 3), compiler_options=micro.FAST_COMPILE)
_mask_targets = micro.jit(mask_targets, static_argnums=3)


def boxes_of(rng: np.random.Generator, count: int, side: int = 6) -> np.ndarray:
    """Boxes with whole corners: many overlaps are equal."""
    corners = np.sort(rng.integers(0, side, (count, 2, 2)), axis=1)
    corners[:, 1] += 1
    return corners.reshape(count, 4).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), real=st.integers(0, 5), low=st.sampled_from([None, 0.0, 0.3, 0.5]))
def test_boxes_are_matched_as_by_loops(seed, real, low):
    rng = np.random.default_rng(seed)
    boxes, objects = boxes_of(rng, 12), boxes_of(rng, 5)
    valid = np.arange(5) < real
    inside = rng.random(12) < 0.8
    matched = _match(jnp.asarray(boxes), jnp.asarray(objects), valid_boxes=inside, valid_objects=valid, lowest=low, **LIMITS)
    expected = np.full(12, IGNORED)
    # float32, as the product: equal overlaps must be equal in both, and IoUs of whole corners that equal a threshold be on its side
    expected[inside] = detection.assigned(boxes[inside], objects[valid], np.float32(0.7), np.float32(0.3), low)
    np.testing.assert_array_equal(matched, expected)


def test_low_quality_matches_take_the_best_box_of_every_object_and_none_below_the_limit():
    objects = jnp.array([[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]])
    boxes = jnp.array([[0.0, 0.0, 10.0, 5.0], [0.0, 5.0, 10.0, 10.0], [20.0, 20.0, 22.0, 30.0], [50.0, 50.0, 51.0, 51.0]])
    both = {"valid_boxes": jnp.ones(4, bool), "valid_objects": jnp.ones(2, bool)}
    assert _match(boxes, objects, **both, **LIMITS).tolist() == [IGNORED, IGNORED, BACKGROUND, BACKGROUND]
    assert _match(boxes, objects, **both, **LIMITS, lowest=0.3).tolist() == [0, 0, BACKGROUND, BACKGROUND]


def test_a_sample_is_as_large_as_asked_and_holds_no_box_twice():
    assigned = jnp.array([0, BACKGROUND, 3, IGNORED, BACKGROUND, 1, BACKGROUND, BACKGROUND, 0, BACKGROUND])
    for seed in range(20):
        drawn = _sample(jax.random.key(seed), assigned, 6, 2)
        assert drawn.valid.all() and drawn.positive.tolist() == [True] * 2 + [False] * 4
        index = np.asarray(drawn.index)
        assert len(set(index)) == 6 and (np.asarray(assigned)[index[:2]] >= 0).all()
        assert (np.asarray(assigned)[index[2:]] == BACKGROUND).all()


def test_every_box_is_drawn_equally_often():
    assigned = jnp.where(jnp.arange(10) < 4, 0, BACKGROUND)
    drawn = micro.jit(jax.vmap(lambda key: sample(key, assigned, 5, 2)))(jax.random.split(jax.random.key(1), 2000))
    counts = np.bincount(np.asarray(drawn.index).ravel(), minlength=10) / 2000
    # 2 of 4 and 3 of 6: one half each; four deviations of a mean of 2,000 draws are .045
    np.testing.assert_allclose(counts, 0.5, atol=0.045)


def test_what_is_missing_is_padding_that_repeats_the_sample():
    ignored = jnp.full(10, IGNORED)
    few = _sample(jax.random.key(0), ignored.at[:4].set(jnp.array([BACKGROUND, 2, IGNORED, BACKGROUND])), 6, 2)
    assert few.valid.tolist() == [True] * 3 + [False] * 3 and few.positive.tolist() == [True] + [False] * 5
    assert few.index[:1].tolist() == [1] and set(few.index.tolist()) == {0, 1, 3}
    assert few.index.tolist() == few.index[:3].tolist() * 2
    only_positive = _sample(jax.random.key(0), jnp.zeros(10, jnp.int32), 6, 2)
    assert only_positive.valid.tolist() == [True] * 2 + [False] * 4
    nothing = _sample(jax.random.key(0), ignored, 6, 2)
    assert not nothing.valid.any() and not nothing.positive.any()


def test_mask_targets_are_means_of_samples_of_the_mask_over_its_box():
    rng = np.random.default_rng(0)
    masks = rng.random((6, 8, 8)) < 0.5
    boxes = np.array([[4, 6, 20, 14]] * 6, np.float32) + rng.uniform(-1, 1, (6, 4)).astype(np.float32)
    regions = boxes + rng.uniform(-5, 5, (6, 4)).astype(np.float32)  # parts outside of the object's box are empty
    regions[0] = boxes[0]
    drawn = np.asarray(_mask_targets(masks, boxes, regions, 5))
    expected = np.stack([detection.mask_target(*row, 5) for row in zip(masks, boxes.astype(float), regions.astype(float), strict=True)])
    sure = np.abs(expected - 0.5) > 1e-4  # elsewhere float32 may round to the other side
    assert sure.mean() > 0.9 and drawn.any() and not drawn.all()
    np.testing.assert_array_equal(drawn[sure], (expected >= 0.5)[sure])


def test_a_full_mask_fills_its_box_and_nothing_else():
    box = jnp.array([[10.0, 20.0, 30.0, 60.0]])
    drawn = _mask_targets(jnp.ones((1, 16, 16), bool), box, jnp.array([[0.0, 0.0, 40.0, 80.0]]), 8)
    expected = np.zeros((8, 8), bool)
    expected[2:6, 2:6] = True
    np.testing.assert_array_equal(drawn[0], expected)
