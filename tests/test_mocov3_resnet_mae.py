"""A whole step of MoCo v3, of ResNets and of MAE on small networks: who learns, who follows, the same on eight devices."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from sere_jax import build, optim, sharding
from sere_jax.state import TrainState
from sere_jax.types import Metrics
from tests import micro

# Without decay a parameter moves exactly where a gradient reaches it.
_EVERY_STEP = {"warmup_epochs": 0, "base_lr": 0.03, "weight_decay": 0.0, "weight_decay_end": 0.0, "freeze_last_layer_epochs": 0}


def _mocov3(recipe: str) -> ConfigDict:
    found = micro.config({"optimizer": _EVERY_STEP | {"clip_grad": 0.0, "warmup": "exclusive"}}, recipe=recipe)
    found.model.update(init="mocov3", positions="sincos_rows", freeze_patch_embed=True, drop_path=0.0)
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


CASES: dict[str, Callable[[], ConfigDict]] = {
    "mocov3": lambda: _mocov3("mocov3"),
    "mocov3_sere": lambda: _mocov3("mocov3_sere"),
    "mocov3_resnet": _mocov3_resnet,
    "dino_resnet": lambda: _resnet("dino"),
    "dino_sere_resnet": lambda: _resnet("dino_sere"),
}
FAST = ("mocov3_sere", "dino_sere_resnet")
_ALL = [pytest.param(case, marks=() if case in FAST else pytest.mark.slow) for case in CASES]


@functools.cache
def _first(case: str) -> tuple[TrainState, TrainState, Metrics]:
    """The state before and after one step, and its metrics."""
    config = CASES[case]()
    state = micro.state(config)
    return state, *micro.jit(build.train_step(config, micro.LENGTH))(state, micro.views(config))


def _named(tree: Any) -> dict[str, np.ndarray]:
    return {"/".join(optim.names(path)): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize("case", _ALL)
def test_losses_are_numbers_with_references(case: str):
    _, after, metrics = _first(case)
    assert all(np.isfinite(value) and jnp.shape(value) == () for value in metrics.values())
    assert build.objective(CASES[case](), micro.LENGTH).references.keys() < metrics.keys()
    assert float(metrics["bad_step"]) == 0 and int(after.step) == 1


@pytest.mark.parametrize("case", _ALL)
def test_gradients_reach_every_parameter_that_is_trained_and_no_other(case: str):
    before, after, _ = _first(case)
    old, frozen = _named(before.params), build.frozen(CASES[case]())
    for name, value in _named(after.params).items():
        fixed = any(name.startswith(prefix + "/") or name == prefix for prefix in frozen)
        assert np.array_equal(value, old[name]) == fixed, name


@pytest.mark.parametrize("case", _ALL)
def test_the_teacher_follows_by_the_rule_of_the_method(case: str):
    before, after, _ = _first(case)
    rules = build.recipe(CASES[case]())
    if rules.ema_timing == "none":
        assert before.teacher == after.teacher == before.teacher_batch_stats == after.teacher_batch_stats == {}
        return
    source = _named(before.params if rules.ema_timing == "before" else after.params)
    old, new = _named(before.teacher), _named(after.teacher)
    apart = {name for name in source if name.startswith(rules.student_only)} if rules.student_only else set()
    assert new.keys() == source.keys() - apart
    for name, value in new.items():
        np.testing.assert_allclose(value, 0.9 * old[name] + 0.1 * source[name], atol=3e-7, err_msg=name)


def test_mocov3s_predictor_is_the_students_alone():
    before, after, _ = _first("mocov3_sere")
    assert set(before.params["heads_mocov3"]) == {"projector", "predictor"}
    for tree in (after.teacher, after.teacher_batch_stats):
        assert set(tree["heads_mocov3"]) == {"projector"}


def test_a_resnets_networks_keep_running_statistics_of_their_own():
    before, after, _ = _first("dino_sere_resnet")
    for stats in ("batch_stats", "teacher_batch_stats"):
        moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), getattr(after, stats)["backbone"], getattr(before, stats)["backbone"])
        assert all(jax.tree.leaves(moved))
    assert np.any(after.batch_stats["backbone"]["bn1"]["mean"] != after.teacher_batch_stats["backbone"]["bn1"]["mean"])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_eight_devices_train_as_one(case: str):
    config, mesh = CASES[case](), sharding.make_mesh()
    before, _, metrics = _first(case)
    shardings = sharding.state_shardings(before, mesh)
    step = jax.jit(
        build.train_step(config, micro.LENGTH),
        in_shardings=(shardings, sharding.batch_sharding(mesh)),
        out_shardings=(shardings, sharding.replicated(mesh)),
        compiler_options=micro.FAST_COMPILE,
    )
    _, found = step(jax.device_put(before, shardings), sharding.to_global(micro.views(config), mesh))
    # The same sums in another order.
    assert found.keys() == metrics.keys()
    for name, value in metrics.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-5, atol=1e-6, err_msg=name)
