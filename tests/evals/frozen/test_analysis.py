"""Self-relation differences against a naive restatement, and against cases whose answer is known."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from sere_jax.evals.frozen import analysis
from sere_jax.ops.geometry import overlap_points
from sere_jax.types import Features
from tests.oracles import relations as oracle


def _features(rng: np.random.Generator, b: int = 3, side: int = 4, d: int = 8) -> Features:
    patches = jnp.asarray(rng.normal(size=(b, side, side, d)), jnp.float32)
    return Features(patches[:, 0, 0], patches, 2 * patches)


def _points(boxes_a: np.ndarray, boxes_b: np.ndarray, flips_a: np.ndarray, flips_b: np.ndarray, size: int = 5):
    boxes = [jnp.asarray(box, jnp.float32) for box in (boxes_a, boxes_b)]
    return overlap_points(boxes[0], jnp.asarray(flips_a), boxes[1], jnp.asarray(flips_b), size=size)


BOXES_A = np.array([[0, 0, 40, 40], [5, 3, 20, 30], [10, 0, 30, 20]])
BOXES_B = np.array([[10, 20, 40, 30], [0, 0, 50, 50], [0, 10, 20, 20]])
FLIPS_A, FLIPS_B = np.array([False, True, False]), np.array([False, False, True])


@pytest.mark.parametrize("tokens", analysis.TOKENS)
@pytest.mark.parametrize("spatial_t, channel_t, heads", [(1.0, 1.0, 1), (0.5, 0.1, 2)])
def test_equals_the_naive_statement(tokens, spatial_t, channel_t, heads):
    rng = np.random.default_rng(0)
    a, b = _features(rng), _features(rng)
    variant = analysis.Variant(tokens, spatial_t, channel_t, heads)
    sums = [np.add(*pair) for pair in zip(analysis.moments(a), analysis.moments(b), strict=True)]
    over = analysis.standard(sums[0].astype(np.float64), sums[1].astype(np.float64), 2 * 3 * 16)
    found = analysis.compare_views(a, b, *_points(BOXES_A, BOXES_B, FLIPS_A, FLIPS_B), variant, over)
    maps = [np.asarray(f.patches if tokens == "post" else f.patches_prenorm) for f in (a, b)]
    if tokens == "standardised":
        both = np.concatenate(maps).reshape(-1, 8).astype(np.float64)
        maps = [np.maximum((m - both.mean(0)) / np.sqrt(both.var(0) + 1e-5), 0) for m in maps]
    spatial: list[list[np.ndarray]] = [[], []]
    for i in range(3):
        grids = oracle.overlap_grid(BOXES_A[i], FLIPS_A[i], BOXES_B[i], FLIPS_B[i], 5)
        for view in range(2):
            sampled = np.stack([oracle.bilinear_border(maps[view][i], y, x) for y, x in grids[view]])
            spatial[view].append(oracle.spatial(sampled, spatial_t, heads))
    channel = [[oracle.channel(m.reshape(16, 8), channel_t) for m in maps[v]] for v in range(2)]
    for kind, relations in (("spatial", spatial), ("channel", channel)):
        same = [oracle.distance(x, y) for x, y in zip(*relations, strict=True)]
        different = [oracle.distance(relations[0][i], relations[1][(i + 1) % 3]) for i in range(3)]
        uniform = [np.mean([oracle.distance(r[i], np.full_like(r[i], 1 / r[i].shape[-1])) for r in relations]) for i in range(3)]
        # Float32 logits of size 10-100 at the sharp temperatures: 1e-5 absolute in them, as much relative after the softmax.
        np.testing.assert_allclose(found[kind].same, same, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found[kind].different, different, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found[kind].uniform, uniform, rtol=1e-4, atol=1e-5)


def test_a_map_of_the_source_gives_no_difference_between_two_crops_of_it():
    """Features linear in the source position are seen alike by every crop: aligned relations then agree, flips included."""

    def view(box: np.ndarray, flip: bool) -> np.ndarray:
        u = (np.arange(32) + 0.5) / 32
        x, y = box[0] + box[2] * (1 - u if flip else u), box[1] + box[3] * u
        yy, xx = np.meshgrid(y, x, indexing="ij")
        return np.stack([yy / 50, xx / 50, np.ones_like(xx)], -1)

    maps = [np.stack([view(*pair) for pair in zip(boxes, flips, strict=True)]) for boxes, flips in ((BOXES_A, FLIPS_A), (BOXES_B, FLIPS_B))]
    a, b = (Features(jnp.zeros((3, 3)), jnp.asarray(m, jnp.float32), jnp.asarray(m, jnp.float32)) for m in maps)
    right = analysis.compare_views(a, b, *_points(BOXES_A, BOXES_B, FLIPS_A, FLIPS_B), analysis.Variant())
    wrong = analysis.compare_views(a, b, *_points(BOXES_A, BOXES_B, ~FLIPS_A, FLIPS_B), analysis.Variant())
    # Border clipping moves the outermost points by half a pixel of 32: a few thousandths of the coordinates.
    assert float(right["spatial"].same.max()) < 0.01 < 0.03 < float(wrong["spatial"].same.min())


def test_views_without_overlap_are_left_out_of_the_spatial_numbers_only():
    rng = np.random.default_rng(1)
    apart = BOXES_B.copy()
    apart[1] = [90, 90, 5, 5]
    found = analysis.compare_views(_features(rng), _features(rng), *_points(BOXES_A, apart, FLIPS_A, FLIPS_B), analysis.Variant())
    assert found["spatial"].valid.tolist() == [True, False, True]
    assert found["spatial"].valid_pair.tolist() == [False, False, True]  # the partner of 0 is 1, of 2 it is 0
    assert found["channel"].valid.tolist() == [True] * 3


def test_known_distances():
    identity, other = jnp.eye(4)[None], jnp.roll(jnp.eye(4), 1, axis=0)[None]
    assert analysis.row_distance(identity, identity).item() == 0
    assert analysis.row_distance(identity, other).item() == 2
    assert analysis.row_distance(identity, jnp.full((1, 4, 4), 0.25)).item() == pytest.approx(1.5)


def test_standardised_relations_do_not_see_the_scale_and_shift_of_a_channel():
    """What a relation head's BatchNorm removes."""
    rng = np.random.default_rng(2)
    a, b = _features(rng), _features(rng)
    scale, shift = jnp.asarray(rng.uniform(0.5, 5, 8), jnp.float32), jnp.asarray(rng.normal(size=8), jnp.float32)
    moved = [f._replace(patches_prenorm=f.patches_prenorm * scale + shift) for f in (a, b)]
    variant = analysis.Variant("standardised")
    found = []
    for first, second in ((a, b), moved):
        sums = [np.add(*pair) for pair in zip(analysis.moments(first), analysis.moments(second), strict=True)]
        over = analysis.standard(sums[0].astype(np.float64), sums[1].astype(np.float64), 96)
        found.append(analysis.compare_views(first, second, *_points(BOXES_A, BOXES_B, FLIPS_A, FLIPS_B), variant, over))
    for kind in ("spatial", "channel"):
        # float32, and an epsilon beside another variance
        np.testing.assert_allclose(found[0][kind].same, found[1][kind].same, rtol=1e-3, atol=1e-5)
    with pytest.raises(ValueError, match="mean and deviation"):
        analysis.compare_views(a, b, *_points(BOXES_A, BOXES_B, FLIPS_A, FLIPS_B), variant)
