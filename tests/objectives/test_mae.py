"""MAE against a patch-by-patch statement: what is hidden, what the encoder sees, the decoder, the targets and the loss."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sere_jax.build import pretraining
from sere_jax.data.crops.masks import sample_masks
from sere_jax.losses.pixels import normalise_patches, patch_pixels, pixel_loss
from sere_jax.objectives.mae import PIXELS, PREDICTED, mae
from sere_jax.ops.patches import visible_patches
from sere_jax.ops.positions import sincos_positions
from sere_jax.types import Views
from tests import micro
from tests.oracles import mae as oracle

STEP = jnp.zeros((), jnp.int32)


def _config() -> Any:
    """One crop of 16 pixels in 4 x 4 patches, of which 12 are hidden."""
    found = micro.config(recipe="mae")
    found.views.update(global_count=1)
    found.masking.update(kind="random", ratio=(0.75, 0.75), ratio_var=(0.0, 0.0))
    found.model.update(width=12, depth=1, heads=3, init="mae", positions="sincos_columns", drop_path=0.0)
    found.mae.update(decoder_width=8, decoder_depth=2, decoder_heads=2)
    return found


def test_three_quarters_of_every_view_are_hidden():
    """147 of 196, each patch as often as any other."""
    recipe = pretraining.mask_recipe(importlib.import_module("configs.mae_vits16").get_config("source=bundled"))
    assert (recipe.grid, recipe.cap) == (14, 147)
    masks, indices = sample_masks(recipe, 400, np.random.default_rng(0))
    assert np.all(masks.sum((1, 2)) == 147) and np.all(indices >= 0)
    # 400 draws of probability .75: a deviation of .1 is 4.6 standard deviations, and there are 196 patches.
    assert np.abs(masks.mean(0) - 0.75).max() < 0.1


def test_visible_patches_and_the_way_back():
    masks = np.random.default_rng(0).permuted(np.arange(12) < 7, axis=0).reshape(1, 1, 3, 4)
    masks = np.concatenate([masks, masks[..., ::-1]], axis=1)
    visible, restore = visible_patches(masks, 7)
    assert visible.shape == (1, 2, 5) and restore.shape == (1, 2, 12)
    for v in range(2):
        flat = masks[0, v].reshape(-1)
        np.testing.assert_array_equal(visible[0, v], np.flatnonzero(~flat))
        ordered = np.concatenate([np.flatnonzero(~flat), np.flatnonzero(flat)])
        np.testing.assert_array_equal(ordered[restore[0, v]], np.arange(12))


@pytest.mark.parametrize("normalise", [True, False])
def test_the_loss_is_that_of_the_definition(normalise: bool):
    rng = np.random.default_rng(1)
    images = rng.normal(size=(3, 1, 4, 6, 3)).astype(np.float32)
    predicted = rng.normal(size=(3, 1, 6, 12)).astype(np.float32)
    masks = rng.permuted(np.tile(np.arange(6) < 4, (3, 1)), axis=1).reshape(3, 1, 2, 3)
    method = mae(patch_size=2, normalise_pixels=normalise)
    views = micro.views(micro.config())._replace(masks=masks)
    found, statistics, metrics = method.apply({PREDICTED: jnp.asarray(predicted), PIXELS: jnp.asarray(images)}, views, {}, STEP)
    expected = oracle.loss(predicted[:, 0], images[:, 0], masks[:, 0], 2, normalise=normalise)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert statistics == {} and metrics == {"mae": found}


def test_targets():
    images = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 4, 6, 3)), jnp.float32)
    pixels = patch_pixels(images, 2)
    for v in range(2):
        np.testing.assert_array_equal(pixels[0, v], oracle.patch_numbers(np.asarray(images[0, v]), 2).astype(np.float32))
    normal = np.asarray(normalise_patches(pixels))
    np.testing.assert_allclose(normal.mean(-1), 0, atol=1e-6)
    np.testing.assert_allclose(normal.var(-1, ddof=1), 1, rtol=1e-4)
    assert np.all(np.isfinite(normalise_patches(jnp.ones((2, 12)))))  # a flat patch
    everything = jnp.ones(pixels.shape[:-1], bool)
    np.testing.assert_allclose(pixel_loss(jnp.zeros_like(pixels), jnp.asarray(normal), everything), 11 / 12, rtol=1e-3)


@functools.cache
def _answers() -> tuple[Any, Views, jax.Array, Any]:
    """Parameters, views, normalised crops and what the network answers."""
    config = _config()
    module = pretraining.network(config)
    views = jax.tree.map(jnp.asarray, micro.views(config))
    params = micro.random_like(pretraining.abstract_state(config, micro.LENGTH).params)
    crops, local = pretraining.augment(config)(views, jax.random.split(jax.random.key(0), 8))
    found = micro.jit(lambda p, c, v: module.apply({"params": p}, c, local, (PREDICTED, PIXELS), views=v))(params, crops, views)
    return params, views, crops, found


def test_the_network_predicts_from_what_is_visible():
    params, views, crops, found = _answers()
    own = micro.copies(params)
    positions = sincos_positions(8, (4, 4), "columns")[0].astype(np.float64)
    for i in range(3):
        cls, visible = oracle.encode(own["backbone"], np.asarray(crops[i, 0]), np.asarray(views.masks[i, 0]), patch=4, heads=3)
        assert len(visible) == 4
        expected = oracle.decode(own["heads_mae"], cls, visible, positions, heads=2)
        np.testing.assert_allclose(found[PREDICTED][i, 0], expected, rtol=1e-4, atol=2e-4)  # float32 through three blocks
    np.testing.assert_array_equal(found[PIXELS], crops)
    assert "mask_token" not in own["backbone"] and "mask_token" in own["heads_mae"]


def test_hidden_pixels_do_not_reach_the_prediction():
    params, views, crops, found = _answers()
    hidden = np.repeat(np.repeat(np.asarray(views.masks)[:, :, :, :, None], 4, axis=2), 4, axis=3)
    module, local = pretraining.network(_config()), jnp.zeros((8, 0, 8, 8, 3))
    changed = jnp.where(hidden, 9.0, crops)
    again = micro.jit(lambda p, c: module.apply({"params": p}, c, local, (PREDICTED,), views=views))(params, changed)
    np.testing.assert_array_equal(again[PREDICTED], found[PREDICTED])


def test_without_masks_the_request_is_refused():
    config = _config()
    params = pretraining.abstract_state(config, micro.LENGTH).params
    views = micro.views(config)._replace(masks=None, mask_indices=None)
    crops = jnp.zeros((8, 1, 16, 16, 3))
    with pytest.raises(ValueError, match="asks for visible tokens; the views have no masks"):
        jax.eval_shape(lambda p: pretraining.network(config).apply({"params": p}, crops, crops[:, :0], (PREDICTED,), views=views), params)
