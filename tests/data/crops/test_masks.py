from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sere_jax.data.crops.masks import MaskRecipe, _add_block, block_mask, random_mask, sample_masks, sample_ratio

grids = st.sampled_from([(3, 3), (4, 4), (14, 14), (4, 7), (14, 6)])


def test_a_block_is_a_rectangle_of_the_recipes_distribution():
    """First blocks of masks of 60 among 14 x 14 patches: area U(16, 60), log-uniform aspect in [0.3, 1 / 0.3], uniform place."""
    rng, rows = np.random.default_rng(0), []
    for _ in range(3000):
        mask = np.zeros((14, 14), bool)
        new = _add_block(mask, 60.0, rng)
        (top, left), (bottom, right) = (edge(np.argwhere(mask), axis=0) for edge in (np.min, np.max))
        height, width = bottom - top + 1, right - left + 1
        assert mask.sum() == new == height * width  # full, and the only one
        rows.append((height, width, top / max(14 - height, 1), left / max(14 - width, 1)))
    height, width, top, left = np.array(rows).T
    area, aspect = height * width, np.log(height / width)
    assert area.max() <= 60 and max(height.max(), width.max()) <= 13
    # Sides are rounded: 4 x 4 patches may stand for an area of 12.25 to 20.25, 8 x 2 for an aspect of up to 1 / 0.2.
    assert area.min() >= 9 and np.abs(aspect).max() < np.log(1 / 0.3) + 0.5
    # Uniform: mean 38 and sd 12.7, log-aspect mean 0 and sd 1.204 / sqrt(3) = 0.695. Standard errors are 0.23 and 0.013; rounding,
    # and the redrawing of blocks of more than 60 patches or 13 a side, take a little off.
    assert area.mean() == pytest.approx(37.5, abs=1.5) and area.std() == pytest.approx(12.7, abs=1.0)
    assert abs(aspect.mean()) < 0.06 and aspect.std() == pytest.approx(0.695, abs=0.06)
    for place in (top, left):  # the share of the free places before it: U(0, 1) on a grid, whose sd is somewhat above 0.289
        assert place.mean() == pytest.approx(0.5, abs=0.03) and place.std() == pytest.approx(0.32, abs=0.04)


@given(st.integers(0, 2**32 - 1), st.floats(0, 1), grids)
def test_masks_never_exceed_their_target(seed, ratio, grid):
    rng = np.random.default_rng(seed)
    target = ratio * grid[0] * grid[1]
    assert block_mask(target, grid, rng).sum() <= target
    assert random_mask(target, grid, rng).sum() == int(target)


def test_block_masks_come_near_their_target_in_few_rectangles():
    rng = np.random.default_rng(0)
    masks = [block_mask(60.0, (14, 14), rng) for _ in range(300)]
    assert np.mean([mask.sum() for mask in masks]) > 57  # ten tries seldom all fail
    # Blocks, not noise: a hidden patch's right neighbour is hidden far more often than the 30 % of a random mask.
    neighbours = np.mean([mask[:, 1:][mask[:, :-1]].mean() for mask in masks])
    assert neighbours > 0.7


def test_half_of_the_ratios_are_zero_and_the_others_uniform():
    recipe = MaskRecipe(grid=14)
    rng = np.random.default_rng(1)
    ratios = np.array([sample_ratio(recipe, rng) for _ in range(4000)])
    assert (ratios == 0).mean() == pytest.approx(0.5, abs=0.03)  # standard error .008
    drawn = ratios[ratios > 0]
    assert drawn.min() >= 0.1 and drawn.max() <= 0.5
    assert np.quantile(drawn, [0.25, 0.5, 0.75]) == pytest.approx([0.2, 0.3, 0.4], abs=0.015)


def test_random_masks_hide_every_patch_equally_often():
    rng = np.random.default_rng(2)
    shares = np.mean([random_mask(4.0, (4, 4), rng) for _ in range(4000)], axis=0)
    assert shares == pytest.approx(np.full((4, 4), 0.25), abs=0.03)  # standard error .007


@pytest.mark.parametrize("columns", [0, 9])
@pytest.mark.parametrize("kind", ["block", "random"])
def test_indices_list_the_hidden_patches_and_are_padded(kind, columns):
    recipe = MaskRecipe(grid=6, kind=kind, columns=columns)
    cap, width = (27, 9) if columns else (18, 6)
    assert recipe.cap == cap  # floor(.5 * 6 * width)
    rng = np.random.default_rng(3)
    for _ in range(50):
        masks, indices = sample_masks(recipe, 2, rng)
        assert masks.shape == (2, 6, width) and masks.dtype == np.bool_ and indices.shape == (2, cap) and indices.dtype == np.int32
        for mask, row in zip(masks, indices, strict=True):
            count = mask.sum()
            np.testing.assert_array_equal(row[:count], np.flatnonzero(mask.reshape(-1)))
            assert (row[count:] == -1).all()
