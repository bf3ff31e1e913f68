"""Mixup, CutMix and random erasing against hand-made cases and their distributions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from sere_jax.ops.erasing import draw_rectangle, erase
from sere_jax.ops.mixing import Mixing, draw_weights, mix, rectangle_weights
from tests import micro


def batch() -> tuple[jax.Array, jax.Array]:
    """Image i is i everywhere, its target is class i."""
    return jnp.broadcast_to(jnp.arange(4.0)[:, None, None, None], (4, 6, 8, 3)), jnp.eye(4)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_targets_are_mixed_in_the_share_of_the_pixels(mixup: float, cutmix: float):
    images, targets = batch()
    run = micro.jit(lambda key: mix(images, targets, key, Mixing(mixup, cutmix)))
    for seed in range(4):
        mixed, mixed_targets = (np.asarray(x) for x in run(jax.random.key(seed)))
        assert mixed_targets.sum(1) == pytest.approx(np.ones(4), abs=1e-6)
        # Image 0 is mixed with image 3, whose pixels are 3: their mean tells the share of each.
        assert mixed[0].mean() / 3 == pytest.approx(mixed_targets[0, 3], abs=1e-6)
        assert (3 - mixed[3].mean()) / 3 == pytest.approx(mixed_targets[3, 0], abs=1e-6)
        assert mixed_targets[1, 2] == pytest.approx(mixed_targets[0, 3], abs=1e-6)
        if not mixup:
            assert set(np.unique(mixed[0])) <= {0.0, 3.0}


def test_nothing_is_mixed_where_both_are_off_or_by_chance():
    images, targets = batch()
    for mixing in (Mixing(0.0, 0.0), Mixing(prob=0.0)):
        assert not mixing.on
        assert all((a == b).all() for a, b in zip(mix(images, targets, jax.random.key(0), mixing), (images, targets), strict=True))
    draw = micro.jit(jax.vmap(lambda key: draw_weights(key, 6, 8, Mixing(mixup=0.8, cutmix=0.0, prob=0.3)).mean()))
    untouched = np.mean(np.asarray(draw(jax.random.split(jax.random.key(0), 1000))) == 1)
    assert untouched == pytest.approx(0.7, abs=0.06)  # four standard deviations of 1,000 draws


def rectangle(share: float, down: float, right: float, height: int, width: int) -> np.ndarray:
    weights = micro.jit(lambda *place: rectangle_weights(*place, height, width))(*map(jnp.float32, (share, down, right)))
    return 1 - np.asarray(weights)


def test_the_rectangle_of_cutmix():
    # 1 - .75 of 8 x 8 pixels: sides floor(8 / 2) = 4, two pixels to each side of the centre.
    inside = rectangle(0.75, 0.5, 0.5, 8, 8)
    assert inside.sum() == 16 and inside[2:6, 2:6].all()
    # At the corner (0, 7) only a quarter less the column beyond remains.
    inside = rectangle(0.75, 0.0, 0.99, 8, 8)
    assert inside.sum() == 6 and inside[:2, 5:].all()
    # Sides of 5.9 and 7.07 pixels: floor, then halves of 2 and 3.
    inside = rectangle(0.5, 0.5, 0.5, 9, 10)
    assert inside.any(1).sum() == 6 and inside.any(0).sum() == 6


def test_shares_have_the_distribution_of_the_set_alpha_and_switch():
    keys = jax.random.split(jax.random.key(1), 4000)
    weights = micro.jit(jax.vmap(lambda key: draw_weights(key, 4, 4, Mixing(0.8, 0.0))[0, 0]))(keys)
    assert stats.kstest(np.asarray(weights), stats.beta(0.8, 0.8).cdf).pvalue > 0.01  # a fixed seed
    both = micro.jit(jax.vmap(lambda key: draw_weights(key, 8, 8, Mixing(0.8, 1.0, switch_prob=0.25))))(keys)
    flat = np.asarray(both).reshape(4000, -1)
    cut = np.isin(flat, (0.0, 1.0)).all(1)
    assert cut.mean() == pytest.approx(0.25, abs=0.03)


def test_erased_rectangles_keep_area_aspect_and_probability():
    height, width = 40, 60
    draw = micro.jit(jax.vmap(lambda key: draw_rectangle(key, height, width, 0.5)))
    masks = np.asarray(draw(jax.random.split(jax.random.key(0), 3000)))
    erased = masks[masks.any((1, 2))]
    assert len(erased) / 3000 == pytest.approx(0.5, abs=0.04)
    rows, columns = erased.any(2).sum(1), erased.any(1).sum(1)
    assert (rows * columns == erased.sum((1, 2))).all()  # they are rectangles
    areas, aspects = rows * columns / (height * width), rows / columns
    # Sides are rounded to whole pixels, so the limits are met to a pixel a side.
    assert areas.min() > 0.015 and areas.max() < 1 / 3 + 0.02 and areas.mean() == pytest.approx((0.02 + 1 / 3) / 2, abs=0.02)
    assert aspects.min() > 0.25 and aspects.max() < 3.8 and np.median(aspects) == pytest.approx(1.0, abs=0.15)
    assert rows.max() < height and columns.max() < width
    assert erased[:, 0].any(1).mean() > 0.02 and erased[:, -1].any(1).mean() > 0.02  # the first and the last row can be hit


def test_erasing_puts_unit_noise_inside_and_leaves_the_rest():
    images = jnp.full((64, 32, 32, 3), 7.0)
    erased = np.asarray(micro.jit(lambda keys: erase(images, keys, 1.0))(jax.random.split(jax.random.key(3), 64)))
    inside = (erased != 7.0).any(-1)
    assert inside.any((1, 2)).all() and inside.mean() < 0.4
    noise = erased[inside]
    # Each pixel and channel has its own number.
    assert noise.mean() == pytest.approx(0, abs=0.02) and noise.std() == pytest.approx(1, abs=0.02)
    assert np.corrcoef(noise[:, 0], noise[:, 1])[0, 1] == pytest.approx(0, abs=0.03)
    assert (np.asarray(erase(images, jax.random.split(jax.random.key(3), 64), 0.0)) == 7.0).all()
