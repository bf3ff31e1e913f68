"""Overlap points and bilinear sampling against point-by-point NumPy, SPEC 8.1 to 8.3, and properties of any two boxes."""

from __future__ import annotations

import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from sere_jax.losses.relation import relation_cross_entropy, relation_targets, spatial_relation
from sere_jax.ops.geometry import Points, overlap_points, sample
from tests.oracles import geometry as oracle
from tests.oracles import sere

IMPLS = ("map_coordinates", "separable")
SAME = np.array([10.0, 20.0, 100.0, 80.0], np.float32)


@functools.partial(jax.jit, static_argnames=("size", "sampling"))
def _points(boxes_a, flips_a, boxes_b, flips_b, *, size, sampling="endpoints"):
    return overlap_points(boxes_a, flips_a, boxes_b, flips_b, size=size, sampling=sampling)


@functools.partial(jax.jit, static_argnames=("padding", "impl"))
def _sample(features, points, *, padding="zeros", impl="map_coordinates"):
    return sample(features, points, padding=padding, impl=impl)


def _pair(box_a, flip_a, box_b, flip_b, size=13, sampling="endpoints") -> tuple[Points, Points]:
    rows = (jnp.asarray([box_a], jnp.float32), jnp.asarray([flip_a]), jnp.asarray([box_b], jnp.float32), jnp.asarray([flip_b]))
    return _points(*rows, size=size, sampling=sampling)


def _row_sums(points: Points, side: int, impl: str = "map_coordinates") -> np.ndarray:
    """How much of each point's weight lies inside the view: what a map of ones answers."""
    size = points.x.shape[-1]
    return np.asarray(_sample(jnp.ones((1, side, side, 1)), points, impl=impl)).reshape(size, size)


def _batch(rng: np.random.Generator, b: int) -> tuple[np.ndarray, ...]:
    """Pairs of crops: ordinary ones, one disjoint, one touching, one inside the other, and all four combinations of flips."""
    boxes = np.concatenate([rng.uniform(0, 40, (2, b, 2)), rng.uniform(20, 60, (2, b, 2))], -1).astype(np.float32)
    boxes[1, 0] = boxes[0, 0] + np.array([500, 0, 0, 0])
    boxes[:, 1] = [[0, 0, 30, 30], [30, 0, 30, 30]]
    boxes[:, 2] = [[0, 0, 90, 60], [20, 20, 30, 30]]
    flips = np.stack([np.arange(b) % 2 == 1, np.arange(b) // 2 % 2 == 1])
    return boxes[0], flips[0], boxes[1], flips[1]


@pytest.mark.parametrize("sampling", ["endpoints", "centers"])
def test_points_do_not_depend_on_where_the_crops_lie_in_the_source(sampling: str):
    """Small crops far from the source's corner: the points are good to float32, relative to the crops themselves."""
    for left, extent in ((3000.0, 1.0), (3000.0, 1.5), (100_000.0, 3.0)):
        a, b = [left, left, extent, extent], [left + 0.25, left - 0.25, extent, extent]  # exact in float32
        grids = oracle.overlap_grids(a, False, b, True, 5, sampling)
        for points, grid in zip(_pair(a, False, b, True, 5, sampling), grids, strict=True):
            # In source pixels float32 would be off by 2e-4 here.
            np.testing.assert_allclose(2 * points.x[0] - 1, grid[0, :, 0], atol=1e-6)
            np.testing.assert_allclose(2 * points.y[0] - 1, grid[:, 0, 1], atol=1e-6)


@pytest.mark.parametrize("sampling", ["endpoints", "centers"])
def test_points_are_those_of_the_definition(sampling: str):
    pairs = _batch(np.random.default_rng(0), 8)
    found = _points(*pairs, size=5, sampling=sampling)
    np.testing.assert_array_equal(found[0].valid[:3], [False, False, True])
    for e in range(8):
        expected = oracle.overlap_grids(*(x[e] for x in pairs), 5, sampling)
        for points, grid in zip(found, expected, strict=True):
            np.testing.assert_allclose(2 * points.x[e] - 1, grid[0, :, 0], atol=1e-5)  # float32 boxes of up to 600 pixels
            np.testing.assert_allclose(2 * points.y[e] - 1, grid[:, 0, 1], atol=1e-5)
            assert bool(points.valid[e]) == (grid[0, 0, 0] != -2)


@pytest.mark.parametrize("impl", [*IMPLS, "auto"])
@pytest.mark.parametrize("padding", ["zeros", "border"])
def test_sampling_is_grid_sample(impl: str, padding: str):
    rng = np.random.default_rng(1)
    features = rng.normal(size=(8, 4, 6, 3)).astype(np.float32)  # not square: rows and columns must not be mixed up
    pairs = _batch(rng, 8)
    points = _points(*pairs, size=5)[1]
    found = np.asarray(_sample(features, points, padding=padding, impl=impl)).reshape(8, 5, 5, 3)
    for e in range(8):
        grid = oracle.overlap_grids(*(x[e] for x in pairs), 5)[1]
        expected = np.zeros((5, 5, 3)) if grid[0, 0, 0] == -2 else oracle.grid_sample(features[e], grid, padding)
        # float32 positions err by about 1e-6 pixels, values are of order 1.
        np.testing.assert_allclose(found[e], expected, atol=1e-5)


@pytest.mark.parametrize("padding", ["zeros", "border"])
def test_both_implementations_agree_in_value_and_gradient(padding: str):
    rng = np.random.default_rng(2)
    features = rng.normal(size=(8, 4, 6, 3)).astype(np.float32)
    weight = rng.normal(size=(8, 25, 3)).astype(np.float32)
    points = _points(*_batch(rng, 8), size=5)[0]

    def value(impl: str):
        return jax.jit(jax.value_and_grad(lambda f: jnp.sum(weight * sample(f, points, padding=padding, impl=impl))))(features)

    (a, gradient_a), (b, gradient_b) = value("map_coordinates"), value("separable")
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradient_a, gradient_b, atol=1e-5)
    automatic, gradient_of_chosen = value("auto")
    np.testing.assert_allclose(automatic, b, rtol=1e-6)
    np.testing.assert_allclose(gradient_of_chosen, gradient_b, atol=1e-6)
    assert np.abs(gradient_a[2:]).max() > 0.1 and not np.any(gradient_a[:2])


@pytest.mark.parametrize(("platform", "gathers"), [("cpu", False), ("tpu", True), ("cuda", True)])
def test_auto_is_separable_on_cpus_alone(platform: str, gathers: bool):
    """Of the platform that the program is compiled for, not of the one that compiles it; in both passes."""
    points = _points(*_batch(np.random.default_rng(2), 8), size=5)[0]
    gradient = jax.jit(jax.grad(lambda f: jnp.sum(sample(f, points, impl="auto") ** 2)))
    text = gradient.trace(jnp.ones((8, 4, 6, 3))).lower(lowering_platforms=(platform,)).as_text()
    assert ("stablehlo.gather" in text) == ("stablehlo.scatter" in text) == gathers


def test_sampling_features_equals_sampling_their_relation():
    """SPEC 8.1: sampling is linear, so the relation may be sampled along keys and queries, or the features once."""
    rng = np.random.default_rng(3)
    box_a, box_b = np.array([3.0, 5, 50, 40]), np.array([20.0, 0, 60, 30])
    points, _ = _pair(box_a, True, box_b, False, size=6)
    features = rng.normal(size=(1, 4, 4, 6)).astype(np.float32)
    grid, _ = oracle.overlap_grids(box_a, True, box_b, False, 6)
    expected = sere.sampled_relation(sere.spatial_relation(features[0], heads=3), oracle.interpolation_matrix(4, 4, grid))
    for impl in IMPLS:
        found = spatial_relation(_sample(features, points, impl=impl), heads=3)
        np.testing.assert_allclose(found[0], expected, atol=1e-5)


def test_identical_boxes_put_the_points_on_the_border():
    """SPEC 8.2: linspace(-1, 1, 13), and bilinear weights that sum to 1/4 on corners, 1/2 on edges and 1 inside."""
    a, b = _pair(SAME, False, SAME, False)
    for points in (a, b):
        np.testing.assert_allclose(2 * points.x[0] - 1, np.linspace(-1, 1, 13), atol=1e-6)
        np.testing.assert_allclose(2 * points.y[0] - 1, np.linspace(-1, 1, 13), atol=1e-6)
    expected = np.ones((13, 13))
    expected[[0, -1]] *= 0.5
    expected[:, [0, -1]] *= 0.5
    for impl in IMPLS:
        # At 224 pixels and patch 16 the map has 14 x 14 patches.
        np.testing.assert_allclose(_row_sums(a, 14, impl), expected, atol=1e-5)


def test_a_flip_negates_x_and_only_x():
    plain, flipped = _pair(SAME, False, SAME, True)
    np.testing.assert_allclose(2 * flipped.x - 1, -(2 * plain.x - 1), atol=1e-6)
    np.testing.assert_array_equal(flipped.y, plain.y)


@pytest.mark.parametrize("other", [[110.0, 20, 50, 80], [10.0, 100, 100, 80], [400.0, 20, 50, 80]], ids=["beside", "below", "far"])
def test_views_without_overlap_answer_zeros(other: list[float]):
    """SPEC 8.2: all -2, relation 0, loss ln 169, gradient exactly 0. Boxes that touch do not overlap."""
    points = _pair(SAME, False, np.array(other), True)
    for side in points:
        assert not bool(side.valid[0])
        np.testing.assert_array_equal(2 * np.asarray(side.x) - 1, -2.0)
        np.testing.assert_array_equal(2 * np.asarray(side.y) - 1, -2.0)
    features = jax.random.normal(jax.random.key(0), (2, 1, 4, 4, 6))

    @functools.partial(jax.jit, static_argnums=(1, 2))
    @jax.value_and_grad
    def loss(student: jax.Array, padding: str, impl: str) -> jax.Array:
        sampled = [sample(f, p, padding=padding, impl=impl) for f, p in zip((features[0], student), points, strict=True)]
        teacher, relation = (spatial_relation(s, heads=3) for s in sampled)
        return relation_cross_entropy(relation_targets(teacher, 0.5), relation)

    for padding, impl in (("zeros", "map_coordinates"), ("border", "separable")):
        value, gradient = loss(features[1], padding, impl)
        np.testing.assert_allclose(value, np.log(169), rtol=1e-5)
        np.testing.assert_array_equal(gradient, 0.0)


def test_a_local_crop_inside_a_global_one_is_attenuated_on_its_own_side_only():
    """SPEC 8.3: 20 of its 36 points lie on its border; none of them on the global crop's."""
    crop = np.array([0.0, 0, 280, 280])
    inside = np.array([10.0, 10, 100, 100])  # exactly half a patch (1/28 of the side) from the corner
    a, b = _pair(crop, False, inside, False, size=6)
    np.testing.assert_allclose(2 * b.x[0] - 1, np.linspace(-1, 1, 6), atol=1e-6)
    assert (_row_sums(b, 6) < 0.99).sum() == 20
    np.testing.assert_allclose(_row_sums(a, 14), 1.0, atol=1e-5)
    near, _ = _pair(crop, False, np.array([2.8, 70, 100, 100]), False, size=6)  # a margin of .01 of the side
    np.testing.assert_allclose(_row_sums(near, 14)[:, 0], 0.64, atol=1e-4)


def _boxes() -> st.SearchStrategy:
    corner, side = st.floats(0, 300, width=32), st.floats(8, 400, width=32)
    return st.tuples(corner, corner, side, side)


def _nearly_touch(box_a, box_b) -> bool:
    """Whether the sums of float32 corners and sides may round either way."""
    return any(abs(max(box_a[i], box_b[i]) - min(box_a[i] + box_a[2 + i], box_b[i] + box_b[2 + i])) < 1e-3 for i in (0, 1))


@given(_boxes(), _boxes(), st.booleans(), st.booleans(), st.sampled_from(["endpoints", "centers"]))
def test_both_views_see_the_same_source_pixel(box_a, box_b, flip_a, flip_b, sampling):
    a, b = _pair(box_a, flip_a, box_b, flip_b, size=4, sampling=sampling)
    overlaps = all(max(box_a[i], box_b[i]) < min(box_a[i] + box_a[2 + i], box_b[i] + box_b[2 + i]) for i in (0, 1))
    if _nearly_touch(box_a, box_b):
        return
    assert bool(a.valid[0]) == bool(b.valid[0]) == overlaps
    if not overlaps:
        return
    for i in range(4):
        seen = [oracle.source_pixel(x, f, float(p.x[0, i]), float(p.y[0, i])) for x, f, p in ((box_a, flip_a, a), (box_b, flip_b, b))]
        # Crop coordinates err by some 1e-7 of a side of at most 400 pixels, relative to corners of at most 300.
        np.testing.assert_allclose(*seen, atol=2e-3)
        for box in (box_a, box_b):
            assert box[0] - 2e-3 <= seen[0][0] <= box[0] + box[2] + 2e-3


@given(_boxes(), _boxes(), st.booleans(), st.booleans(), st.sampled_from(["zeros", "border"]))
def test_implementations_agree_on_any_two_boxes(box_a, box_b, flip_a, flip_b, padding):
    features = np.random.default_rng(0).normal(size=(1, 4, 6, 2)).astype(np.float32)
    for points in _pair(box_a, flip_a, box_b, flip_b, size=4):
        both = [_sample(features, points, padding=padding, impl=impl) for impl in IMPLS]
        np.testing.assert_allclose(*both, atol=1e-5)


_relation = jax.jit(functools.partial(spatial_relation, heads=3))


@given(_boxes(), _boxes(), st.booleans(), st.booleans(), st.sampled_from(["zeros", "border"]), st.sampled_from(IMPLS))
def test_the_sampled_relation_is_the_relation_of_samples_for_any_two_boxes(box_a, box_b, flip_a, flip_b, padding, impl):
    """Along keys and then queries, as the authors' code samples it. Not square: rows and columns must not be mixed up."""
    if _nearly_touch(box_a, box_b):
        return
    features = np.random.default_rng(1).normal(size=(1, 3, 5, 6)).astype(np.float32)
    relation = sere.spatial_relation(features[0], heads=3)
    grids = oracle.overlap_grids(box_a, flip_a, box_b, flip_b, 4)
    for points, grid in zip(_pair(box_a, flip_a, box_b, flip_b, size=4), grids, strict=True):
        found = _relation(_sample(features, points, padding=padding, impl=impl))[0]
        matrix = np.zeros((16, 15)) if grid[0, 0, 0] == -2 else oracle.interpolation_matrix(3, 5, grid, padding)
        # Source pixels of up to 700 err by 3e-5 in float32; in a view of 8 pixels a side that is 2e-5 of a map of 5 patches.
        np.testing.assert_allclose(found, sere.sampled_relation(relation, matrix), atol=3e-4)
