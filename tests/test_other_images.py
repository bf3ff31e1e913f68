"""Networks for images that are not square RGB: a train step of every kind of loss, the export, and a whole run on arrays."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sere_jax import load_backbone
from sere_jax.build import pretraining
from sere_jax.commands import pretrain
from sere_jax.commands.export import export
from sere_jax.commands.extract import extract
from sere_jax.config.check import validate
from sere_jax.data.sources.open import open_source
from sere_jax.models.vit import ViT
from sere_jax.ops.resize import bicubic_matrix
from sere_jax.weights.read import preprocess
from tests import micro, saved_run

CHANNELS = 5
OTHER = {
    "views": {"global_width": 24, "local_size": 8, "local_width": 12},
    "model": {"in_channels": CHANNELS},
    "photometry": {"saturation": 0.0, "hue": 0.0, "gray_prob": 0.0, "mean": (0.4,) * CHANNELS, "std": (0.2,) * CHANNELS},
    "data": {"value_range": (0.0, 10000.0)},
}


def config(recipe="dino_sere", photometry=True, **changes):
    found = micro.config(OTHER | changes, local_count=1, photometry=photometry, recipe=recipe)
    found.data.source = "bundled"
    validate(found, devices=1, processes=1)
    return found


def views(config):
    """Noise in the shapes that the config asks for."""
    rng = np.random.default_rng(0)
    found = micro.views(config)
    noise = [rng.integers(0, 256, x.shape, dtype=np.uint8) for x in pretraining.abstract_views(config)[:2]]
    return found._replace(global_views=noise[0], local_views=noise[1])


# The cross of shapes is traced, not compiled: a mistake in a shape shows when a program is traced.
@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("ibot_sere", {"masking": {"kind": "block"}}),
        pytest.param("dinoplus_sere", {}, marks=pytest.mark.slow),
        pytest.param("dino_barlow", {}, marks=pytest.mark.slow),
        pytest.param(
            "dino",  # relations ask a ResNet for sides of whole strides
            {"model": {"name": "resnet", "width": 64, "depth": 1, "heads": 0, "drop_path": 0.0, "in_channels": CHANNELS}},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_every_kind_of_loss_is_defined_on_views_that_are_not_square(recipe, changes):
    chosen = config(recipe, **changes)
    shapes = pretraining.abstract_views(chosen)
    assert shapes.global_views.shape == (8, 2, 16, 24, CHANNELS) and shapes.local_views.shape == (8, 1, 8, 12, CHANNELS)
    if shapes.masks is not None:
        assert shapes.masks.shape == (8, 2, 4, 6) and shapes.mask_indices.shape[-1] == 12  # half of 24 patches
    state = pretraining.abstract_state(chosen, micro.LENGTH)
    after, metrics = jax.eval_shape(pretraining.train_step(chosen, micro.LENGTH), state, shapes)
    assert jax.tree.map(lambda x: x.shape, after) == jax.tree.map(lambda x: x.shape, state) and metrics["loss"].shape == ()


def test_a_step_on_five_channels_and_views_that_are_not_square_moves_every_parameter():
    # Colours are left out, which test_photometric has for any channels: they double the compilation.
    chosen = config(
        photometry=False, optimizer={"warmup_epochs": 0, "base_lr": 0.03, "freeze_last_layer_epochs": 0}, teacher={"ema_momentum": 0.9}
    )
    state, batch = micro.state(chosen), views(chosen)
    after, metrics = micro.compiled(pretraining.train_step(chosen, micro.LENGTH), state, batch)(state, batch)
    assert np.isfinite(float(metrics["loss"])) and metrics["bad_step"] == 0
    still = [
        jax.tree_util.keystr(path)
        for (path, new), old in zip(jax.tree_util.tree_leaves_with_path(after.params), jax.tree.leaves(state.params), strict=True)
        if not np.any(new != old)
    ]
    assert still == []
    # Each of the 6 x 6 stored positions takes part, though no grid of a view has as many rows.
    moved = np.abs(after.params["backbone"]["pos_embed"] - state.params["backbone"]["pos_embed"])[0].max(-1)
    assert moved.shape == (37,) and (moved > 0).all()


def test_positions_of_a_grid_that_is_not_square_are_the_stored_ones_resized():
    """DINO's rule in each direction by itself. The difference of two outputs of a network without blocks is that of its positions."""
    chosen = config()
    module = pretraining.backbone(chosen)
    assert isinstance(module, ViT) and module.image_size == 24
    plain = module.clone(depth=0)
    params = micro.random_like(jax.eval_shape(plain.init, jax.random.key(0), jnp.zeros((1, 16, 24, CHANNELS))))["params"]
    without = params | {"pos_embed": jnp.zeros_like(params["pos_embed"])}
    images = jnp.asarray(np.random.default_rng(1).normal(size=(1, 16, 24, CHANNELS)), jnp.float32)
    difference = [plain.apply({"params": p}, images).patches_prenorm for p in (params, without)]
    stored = np.asarray(params["pos_embed"])[0, 1:].reshape(6, 6, -1)
    expected = np.einsum("hs,wt,std->hwd", bicubic_matrix(6, 4), bicubic_matrix(6, 6), stored)
    np.testing.assert_allclose(np.asarray(difference[0] - difference[1])[0], expected, atol=1e-5)  # float32 sums of a few units


def test_mean_std_and_range_travel_with_the_weights(tmp_path):
    chosen = config()
    prepare = preprocess(chosen)
    assert (prepare.size, prepare.resize, prepare.mean, prepare.std, prepare.value_range) == (24, 27, (0.4,) * 5, (0.2,) * 5, (0.0, 1e4))
    workdir = saved_run.checkpoint(tmp_path / "run", chosen, saved_run.state(chosen))
    written = export(workdir, tmp_path / "x.safetensors")
    told = json.loads(written.preprocessor.read_text())
    assert told["image_mean"] == [0.4] * 5 and told["image_std"] == [0.2] * 5 and told["num_channels"] == 5
    assert told["do_convert_rgb"] is False and told["input_range"] == [0.0, 10000.0]
    assert json.loads(written.config.read_text())["timm"]["arguments"]["in_chans"] == 5
    for source in (workdir, written.tensors):
        backbone = load_backbone(source, heads=0 if source == workdir else 3)
        assert backbone.preprocess == prepare and backbone.module.in_channels == 5


def arrays(directory, count=12):
    """Reflectances of 5 bands, 30 x 40, in two classes."""
    rng = np.random.default_rng(0)
    for number in range(count):
        folder = directory / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{number}.npy", rng.integers(0, 10000, (30, 40, CHANNELS)).astype(np.uint16))
    return f"folder:{directory}"


@pytest.mark.slow
def test_a_run_on_arrays_from_training_to_features(tmp_path):
    source = arrays(tmp_path / "data")
    chosen = config()
    chosen.data.update({"source": source, "workers": 0})
    chosen.optimizer.update({"warmup_epochs": 0, "freeze_last_layer_epochs": 0})
    chosen.schedule.total_steps = 2
    chosen.run.update({"log_every_steps": 1, "checkpoint_every_steps": 1})
    state = pretrain.train(chosen, str(tmp_path / "run"))
    assert int(state.step) == 2
    values = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite(values[-1]["loss"]) and values[-1]["data/replaced"] == 0
    backbone = load_backbone(tmp_path / "run")
    found = extract(backbone, open_source(source), tmp_path / "features", layout="npz", batch_size=4)
    assert (found.images, found.unreadable) == (12, 0)
