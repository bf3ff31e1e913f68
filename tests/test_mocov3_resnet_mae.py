"""A whole step of MoCo v3, of ResNets and of MAE on small networks: who learns and who follows.

The same on eight devices, and the other combinations: test_methods.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from sere_jax.build import pretraining
from sere_jax.train import optim
from sere_jax.train.state import State
from sere_jax.types import Metrics
from tests import micro

# Without decay a parameter moves exactly where a gradient reaches it.
_EVERY_STEP = {"warmup_epochs": 0, "base_lr": 0.03, "weight_decay": 0.0, "weight_decay_end": 0.0, "freeze_last_layer_epochs": 0}


def _mocov3(recipe: str) -> ConfigDict:
    found = micro.config({"optimizer": _EVERY_STEP | {"clip_grad": 0.0, "warmup": "exclusive"}}, recipe=recipe)
    found.model.update(depth=1, init="mocov3", positions="sincos_rows", freeze_patch_embed=True, drop_path=0.0)
    found.mocov3.update(hidden=24, width=8)
    found.teacher.ema_momentum = 0.9
    return found


def _resnet(recipe: str) -> ConfigDict:
    """64 pixels: a last map of 2 x 2 for global crops, 1 x 1 for local ones."""
    changes = {"relation": {"heads": 8}, "optimizer": _EVERY_STEP | {"name": "sgd", "clip_grad": 3.0}}
    found = micro.config(changes, recipe=recipe, local_count=1)
    found.views.update(global_size=64, local_size=32)
    found.model.update(name="resnet", variant="custom", width=64, depth=1, heads=0, drop_path=0.0)
    found.teacher.ema_momentum = 0.9
    return found


def _mocov3_resnet() -> ConfigDict:
    found = _mocov3("mocov3")
    found.views.global_size = 64
    found.model.update(_resnet("dino").model.to_dict() | {"zero_init_residual": True})
    found.mocov3.update(projector_layers=2, predictor_last_norm=False, temperature=1.0)
    found.optimizer.update(name="lars", base_lr=10.0)
    return found


def _mae() -> ConfigDict:
    found = micro.config({"optimizer": _EVERY_STEP | {"beta2": 0.95, "clip_grad": 0.0, "warmup": "exclusive"}}, recipe="mae")
    found.views.global_count = 1
    found.masking.update(kind="random", ratio=(0.75, 0.75), ratio_var=(0.0, 0.0))
    found.model.update(depth=1, init="mae", positions="sincos_columns", drop_path=0.0)
    found.mae.update(decoder_width=24, decoder_depth=1, decoder_heads=2)
    return found


CASES: dict[str, Callable[[], ConfigDict]] = {
    "mocov3": lambda: _mocov3("mocov3"),
    "mocov3_sere": lambda: _mocov3("mocov3_sere"),
    "mocov3_resnet": _mocov3_resnet,
    "dino_sere_resnet": lambda: _resnet("dino_sere"),
    "mae": _mae,
}
FAST = ("mocov3_sere", "dino_sere_resnet", "mae")


@functools.cache
def _first(case: str) -> tuple[State, State, Metrics]:
    """The state before and after one step, and its metrics."""
    config = CASES[case]()
    state = micro.state(config)
    return state, *micro.jit(pretraining.train_step(config, micro.LENGTH))(state, micro.views(config))


def _named(tree: Any) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in flatten_dict(tree, sep="/").items()}


@pytest.mark.parametrize("case", FAST)
def test_losses_are_numbers_with_references(case: str):
    _, after, metrics = _first(case)
    assert all(np.isfinite(value) and jnp.shape(value) == () for value in metrics.values())
    assert pretraining.objective(CASES[case](), micro.LENGTH).references.keys() < metrics.keys()
    assert float(metrics["bad_step"]) == 0 and int(after.step) == 1


@pytest.mark.parametrize("case", FAST)
def test_gradients_reach_every_parameter_that_is_trained_and_no_other(case: str):
    before, after, _ = _first(case)
    old, first_step = _named(before.params), pretraining.optimizer_rules(CASES[case](), micro.LENGTH).moves_from
    for name, value in _named(after.params).items():
        assert np.array_equal(value, old[name]) == (first_step(name) == optim.NEVER), name


@pytest.mark.parametrize("case", FAST)
def test_the_teacher_follows_by_the_rule_of_the_method(case: str):
    before, after, _ = _first(case)
    rules = pretraining.recipe(CASES[case]())
    if rules.ema_timing == "none":
        assert before.method.teacher == after.method.teacher == before.method.teacher_batch_stats == after.method.teacher_batch_stats == {}
        return
    source = _named(before.params if rules.ema_timing == "before" else after.params)
    old, new = _named(before.method.teacher), _named(after.method.teacher)
    apart = {name for name in source if name.startswith(rules.student_only)} if rules.student_only else set()
    assert new.keys() == source.keys() - apart
    for name, value in new.items():
        np.testing.assert_allclose(value, 0.9 * old[name] + 0.1 * source[name], atol=3e-7, err_msg=name)


def test_mae_learns_on_one_batch_without_a_teacher():
    config = CASES["mae"]()
    step, state, losses = micro.jit(pretraining.train_step(config, micro.LENGTH)), micro.state(config), []
    for _ in range(8):
        state, metrics = step(state, micro.views(config))
        losses.append(float(metrics["mae"]))
    assert "ema_momentum" not in metrics and losses[-1] < 0.9 * losses[0]


def test_mocov3s_predictor_is_the_students_alone():
    before, after, _ = _first("mocov3_sere")
    assert set(before.params["heads_mocov3"]) == {"projector", "predictor"}
    for tree in (after.method.teacher, after.method.teacher_batch_stats):
        assert set(tree["heads_mocov3"]) == {"projector"}


def test_a_resnets_networks_keep_running_statistics_of_their_own():
    before, after, _ = _first("dino_sere_resnet")
    for new, old in ((after.batch_stats, before.batch_stats), (after.method.teacher_batch_stats, before.method.teacher_batch_stats)):
        moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), new["backbone"], old["backbone"])
        assert all(jax.tree.leaves(moved))
    assert np.any(after.batch_stats["backbone"]["bn1"]["mean"] != after.method.teacher_batch_stats["backbone"]["bn1"]["mean"])
