"""Boxes against definitions in Python, and properties of any boxes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sere_jax.ops.boxes import MAX_GROWTH, anchors, areas, clip, decode, encode, giou, iou, mirror

DEVIATIONS = (0.1, 0.1, 0.2, 0.2)
OVERLAPS = jax.jit(lambda a, b: (iou(a, b), giou(a, b)))
THERE_AND_BACK = jax.jit(lambda boxes, references: decode(encode(boxes, references, DEVIATIONS), references, DEVIATIONS))
MIRRORED = jax.jit(lambda boxes: (mirror(boxes, 80), mirror(mirror(boxes, 80), 80)))


@st.composite
def some_boxes(draw: st.DrawFn, count: int = 5) -> np.ndarray:
    """Boxes of at least one pixel on whole coordinates."""
    corners = draw(arrays(np.float32, (count, 2), elements=st.integers(0, 40).map(np.float32)))
    sides = draw(arrays(np.float32, (count, 2), elements=st.integers(1, 30).map(np.float32)))
    return np.concatenate([corners, corners + sides], axis=1)


def _pixels(box: np.ndarray) -> set[tuple[int, int]]:
    left, top, right, bottom = map(int, box)
    return {(x, y) for x in range(left, right) for y in range(top, bottom)}


@given(some_boxes(3), some_boxes(3))
def test_overlaps_count_pixels(a: np.ndarray, b: np.ndarray) -> None:
    for box, other, values in zip(a, b, np.stack(OVERLAPS(a, b), axis=1), strict=True):
        ours, theirs = _pixels(box), _pixels(other)
        hull = _pixels(np.concatenate([np.minimum(box[:2], other[:2]), np.maximum(box[2:], other[2:])]))
        union, shared = len(ours | theirs), len(ours & theirs)
        # Whole pixels are exact in float32; the quotient is rounded once.
        np.testing.assert_allclose(values[0], shared / union, rtol=1e-6)
        np.testing.assert_allclose(values[1], shared / union - (len(hull) - union) / len(hull), rtol=1e-5, atol=1e-6)


@given(some_boxes(), some_boxes())
def test_decoding_inverts_encoding(boxes: np.ndarray, references: np.ndarray) -> None:
    # Sides up to 30 pixels and positions up to 70, in float32.
    np.testing.assert_allclose(THERE_AND_BACK(boxes, references), boxes, atol=2e-4)


def test_codes_of_a_box_made_by_hand() -> None:
    # The reference is 10 x 20 around (15, 20); the box 20 x 10 around (20, 15).
    codes = encode(jnp.array([10.0, 10.0, 30.0, 20.0]), jnp.array([10.0, 10.0, 20.0, 30.0]), (0.5, 1.0, 1.0, 2.0))
    np.testing.assert_allclose(codes, [0.5 / 0.5, -0.25, np.log(2), np.log(0.5) / 2], rtol=1e-6)


def test_a_wild_prediction_grows_by_the_limit() -> None:
    left, _, right, _ = decode(jnp.array([0.0, 0.0, 1e4, -1e4]), jnp.array([0.0, 0.0, 16.0, 16.0]))
    np.testing.assert_allclose(right - left, 16 * MAX_GROWTH, rtol=1e-5)


@given(some_boxes())
def test_mirroring_twice_is_nothing(boxes: np.ndarray) -> None:
    once, twice = MIRRORED(boxes)
    np.testing.assert_array_equal(once[:, [1, 3]], boxes[:, [1, 3]])
    np.testing.assert_array_equal(once[:, 0] + boxes[:, 2], 80)
    np.testing.assert_array_equal(twice, boxes)


def test_clipping_to_images_of_several_sizes() -> None:
    boxes = jnp.array([[[-5.0, -5.0, 50.0, 50.0]], [[10.0, 10.0, 12.0, 60.0]]])
    clipped = clip(boxes, jnp.array([[30.0], [40.0]]), jnp.array([[20.0], [11.0]]))
    assert clipped.tolist() == [[[0, 0, 20, 30]], [[10, 10, 11, 40]]]


def test_empty_boxes_have_no_overlap_and_finite_gradients() -> None:
    empty = jnp.zeros(4)
    assert iou(empty, empty) == 0 and areas(jnp.array([5.0, 5.0, 1.0, 9.0])) == 0
    assert np.isfinite(jax.grad(lambda box: giou(box, jnp.array([1.0, 1.0, 2.0, 2.0])))(empty)).all()


def test_anchors_of_one_level() -> None:
    grid = anchors(2, 3, stride=8, size=64.0, ratios=(0.5, 1.0, 2.0))
    assert grid.shape == (2, 3, 3, 4) and grid.dtype == np.float32
    np.testing.assert_allclose(grid[1, 2, 1], [16 - 32, 8 - 32, 16 + 32, 8 + 32])
    sides = grid[..., 2:] - grid[..., :2]
    np.testing.assert_allclose(sides[..., 1] / sides[..., 0], np.broadcast_to([0.5, 1.0, 2.0], (2, 3, 3)), rtol=1e-6)
    np.testing.assert_allclose(sides[..., 0] * sides[..., 1], 64**2, rtol=1e-6)
