"""Every recipe with every backbone that makes sense, one step on a micro model: one device against eight, gradients, the teacher.

What each loss computes is tested beside it; here it is that a method is whole: its config, its requests, its heads, its state.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from sere_jax import sharding
from sere_jax.build import pretraining
from sere_jax.config import check as rules
from sere_jax.config import unread
from sere_jax.objectives.recipes import RECIPES
from sere_jax.ops.keys import example_keys
from sere_jax.train import optim
from sere_jax.train.state import State
from sere_jax.train.step import Running
from sere_jax.types import Metrics, Views
from tests import micro

# The narrowest that every part of a method lives in; updates from the first step on.
SMALL = {
    "model": {"depth": 1, "width": 12, "heads": 3},
    "relation": {"sampling_impl": "separable", "heads": 3, "global_points": 5, "local_points": 3},
    "optimizer": {"warmup_epochs": 0, "freeze_last_layer_epochs": 0, "base_lr": 0.03},
    "teacher": {"ema_momentum": 0.9},
}
# What a recipe needs beyond its name.
NEEDS: dict[str, dict[str, dict[str, Any]]] = {name: {"masking": {"kind": "block"}} for name in ("ibot", "ibot_sere")}
NEEDS |= {name: {"views": {"local_count": 0}, "mocov3": {"hidden": 24, "width": 8}} for name in ("mocov3", "mocov3_sere")}
NEEDS["mae"] = {
    "views": {"global_count": 1, "local_count": 0},
    "masking": {"kind": "random", "ratio": (0.75, 0.75), "ratio_var": (0.0, 0.0)},
    "model": {"positions": "sincos_columns", "drop_path": 0.0},
    "mae": {"decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2},
}
# Relations are taken before the final LayerNorm: alone they never use it.
UNUSED = dict.fromkeys(("spatial", "channel", "spatial_channel"), ("backbone/norm/",))
BACKBONES: dict[str, dict[str, dict[str, Any]]] = {
    "vit": {},
    # 64 pixels: a last map of 2 x 2 for global crops, 1 x 1 for local ones
    "resnet": {
        "views": {"global_size": 64, "local_size": 32},
        "model": {"name": "resnet", "variant": "custom", "width": 64, "depth": 1, "heads": 0, "drop_path": 0.0},
        "relation": {"heads": 8},
    },
}
SENSELESS = {("ibot", "resnet"), ("ibot_sere", "resnet"), ("mae", "resnet")}  # a ResNet has no patch tokens to hide
CASES = [(recipe, backbone) for recipe in RECIPES for backbone in BACKBONES if (recipe, backbone) not in SENSELESS]
FAST = {("ibot_sere", "vit"), ("dinoplus", "vit"), ("dino_barlow", "vit")}
# Other settings of the same recipes, each a path of its own through the network.
VARIANTS = {
    "ibot_sere of the whole view": ("ibot_sere", {"relation": {"student_tokens": "unmasked"}}),
    "ibot with random masks and free prototypes": ("ibot", {"masking": {"kind": "random"}, "head": {"norm_last_layer": False}}),
    "barlow of the cls token with its own projector": (
        "dino_barlow",
        {"barlow": {"embedding": "cls", "projector": "mlp", "projector_width": 8}},
    ),
    "dino_sere with one set of heads and no predictor": ("dino_sere", {"relation": {"local_heads": "shared", "symmetric": True}}),
}


def _config(recipe: str, backbone: str = "vit", changes: dict[str, dict[str, Any]] | None = None) -> ConfigDict:
    found = micro.config(SMALL, local_count=1, recipe=recipe)
    for more in (BACKBONES[backbone], NEEDS.get(recipe, {}), changes or {}):
        for section, values in more.items():
            found[section].update(values)
    unread.reset(found, (), [f"{section}.{name}" for section, values in (changes or {}).items() for name in values])
    return found


def _views(config: ConfigDict) -> Views:
    views = micro.views(config, seed=3)
    if "patch" in pretraining.recipe(config).losses:
        hidden = np.any(views.masks, (2, 3))
        assert np.any(hidden) and not np.all(hidden)  # some views have hidden patches, some have none
    return views


class Stepped(NamedTuple):
    before: State
    after: State
    metrics: Metrics
    gradients: Any  # of the student's parameters
    teacher_gradients: Any


def _on_one(config: ConfigDict) -> Stepped:
    """A step, and the gradients of its loss in both networks' parameters, in one compilation."""
    state, views, step = micro.state(config), _views(config), pretraining.train_step(config, micro.LENGTH)

    def run(state: State, views: Views) -> tuple[State, Metrics, Any]:
        def loss(networks: Any) -> jax.Array:
            method = state.method._replace(teacher=networks[1])
            running = Running(state.batch_stats, method.teacher_batch_stats)
            return step.loss(method, state.step, networks[0], running, views, example_keys(step.seed, state.step, len(views.index)))[0]

        return *step(state, views), jax.grad(loss)((state.params, state.method.teacher))

    after, metrics, (gradients, teacher) = micro.jit(run)(state, views)
    return Stepped(state, after, metrics, gradients, teacher)


def _on_eight(config: ConfigDict) -> tuple[State, Metrics]:
    mesh, state = sharding.make_mesh(2), micro.state(config)
    shardings = sharding.state_shardings(state, mesh, min_size=512)
    step = jax.jit(
        pretraining.train_step(config, micro.LENGTH),
        in_shardings=(shardings, sharding.batch_sharding(mesh)),
        out_shardings=(shardings, sharding.replicated(mesh)),
        compiler_options=micro.FAST_COMPILE,
    )
    return step(jax.device_put(state, shardings), sharding.to_global(_views(config), mesh))


def _named(tree: Any) -> dict[str, Any]:
    return flatten_dict(tree, sep="/")


def _names(tree: Any, predicate: Any) -> set[str]:
    return {name for name, leaf in _named(tree).items() if predicate(leaf)}


def _check(config: ConfigDict) -> None:
    one = _on_one(config)
    assert all(np.isfinite(value) for value in one.metrics.values()) and float(one.metrics["bad_step"]) == 0
    references = pretraining.objective(config, micro.LENGTH).references
    assert references.keys() <= one.metrics.keys()
    _check_gradients(config, one)
    _check_teacher(config, one)
    after, metrics = _on_eight(config)
    for name, value in one.metrics.items():
        # float32 sums in another order; centers and gradients are sums of many terms that cancel
        np.testing.assert_allclose(metrics[name], value, rtol=2e-5, atol=2e-6, err_msg=name)
    micro.assert_close(after.method.objective, one.after.method.objective, atol=1e-5)
    micro.assert_close(after.batch_stats, one.after.batch_stats, rtol=1e-4, atol=1e-5)


def _check_gradients(config: ConfigDict, one: Stepped) -> None:
    """Every trainable parameter has a gradient and moves; the others do neither; nothing reaches the teacher."""
    unused = UNUSED.get(config.recipe, ()) if config.model.name == "vit" else ()
    first_step = pretraining.optimizer_rules(config, micro.LENGTH).moves_from
    trained = {name for name in _named(one.before.params) if first_step(name) != optim.NEVER and not name.startswith(unused)}
    assert _names(one.gradients, np.any) == trained
    moved = jax.tree.map(lambda a, b: np.any(a != b), one.after.params, one.before.params)
    assert _names(moved, bool) == trained
    assert not _names(one.teacher_gradients, np.any)


def _check_teacher(config: ConfigDict, one: Stepped) -> None:
    recipe = RECIPES[config.recipe]
    if recipe.ema_timing == "none":
        assert one.before.method.teacher == one.after.method.teacher == {}
        return
    student = _named(one.after.params if recipe.ema_timing == "after" else one.before.params)
    before, after = _named(one.before.method.teacher), _named(one.after.method.teacher)
    assert after.keys() == {name for name in student if not name.startswith(recipe.student_only or "-")}
    momentum = float(one.metrics["ema_momentum"])
    for name, value in after.items():
        np.testing.assert_allclose(value, momentum * before[name] + (1 - momentum) * student[name], atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("recipe", "backbone"),
    [pytest.param(*case, marks=() if case in FAST else pytest.mark.slow, id="-".join(case)) for case in CASES],
)
def test_a_step_of_every_recipe_on_every_backbone(recipe: str, backbone: str):
    config = _config(recipe, backbone)
    assert not [line for line in rules.mistakes(config, devices=8, processes=1) if not line.startswith("data.source")]
    _check(config)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_of_other_settings(variant: str):
    recipe, changes = VARIANTS[variant]
    _check(_config(recipe, changes=changes))


@pytest.mark.parametrize("recipe", ["ibot_sere", pytest.param("dinoplus_sere", marks=pytest.mark.slow)])
def test_no_rows_travel_between_devices(recipe: str):
    """Gathering masked patches and sampling at overlap points stay within an example: the compiled step has sums only."""
    config, mesh = _config(recipe), sharding.make_mesh(1)
    state, views = pretraining.abstract_state(config, micro.LENGTH), jax.eval_shape(lambda: jax.tree.map(jnp.asarray, _views(config)))
    rows, everywhere = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    step = jax.jit(pretraining.train_step(config, micro.LENGTH), in_shardings=(everywhere, rows), out_shardings=everywhere)
    text = step.lower(state, views).compile(compiler_options=micro.FAST_COMPILE).as_text()
    assert "all-reduce" in text
    assert not [kind for kind in ("all-gather", "all-to-all", "collective-permute", "reduce-scatter") if f" {kind}(" in text]


UNMASKED = ", ".join(recipe for recipe in RECIPES if (recipe, "resnet") not in SENSELESS)


@pytest.mark.parametrize(
    ("recipe", "changes", "message"),
    [
        ("ibot", {"masking": {"kind": "none"}}, "masking.kind: found 'none', expected block or random: ibot learns from hidden patches"),
        ("ibot", {"masking": {"kind": "random", "ratio": (0.0, 0.9)}}, "masking.ratio: found 0.0 -+ 0.0 and 0.9 -+ 0.2"),
        ("dino_sere", {"relation": {"heads": 5}}, "relation.heads: found 5, expected a divisor of the model's width 12"),
        (
            "dino",
            BACKBONES["resnet"] | {"masking": {"kind": "block"}},
            "masking.kind: found 'block', which is never read: no loss of recipe = dino learns from masked patches",
        ),
        ("ibot", BACKBONES["resnet"], f"recipe: found 'ibot', expected one of {UNMASKED}: it learns from masked patches, and a ResNet has"),
        (
            "ibot",
            BACKBONES["resnet"] | {"masking": {"kind": "none"}},
            f"recipe: found 'ibot', expected one of {UNMASKED}",
        ),
        (
            "mae",
            BACKBONES["resnet"],
            f"recipe: found 'mae', expected one of {UNMASKED}: it learns from masked patches, and a ResNet has no",
        ),
        ("mae", {"masking": {"kind": "block"}}, "masking.kind: found 'block', expected random: mae hides the same number of patches"),
        ("mae", {"masking": {"ratio_var": (0.0, 0.1)}}, "masking.ratio_var: found (0.0, 0.1), expected (0.0, 0.0): mae hides"),
        ("mae", {"mae": {"decoder_width": 10}}, "mae.decoder_width: found 10, expected a multiple of 4 and of mae.decoder_heads = 2"),
        ("mae", {"views": {"local_count": 2}}, "views.local_count: found 2, expected 0: no loss of mae looks at local crops"),
        ("dino", {"views": {"global_count": 1}}, "views.global_count: found 1, expected 2: dino compares two global crops"),
    ],
)
def test_combinations_that_make_no_sense_are_refused(recipe: str, changes: dict[str, dict[str, Any]], message: str):
    lines = rules.mistakes(_config(recipe, changes=changes), devices=1, processes=1)
    assert any(line.startswith(message) for line in lines), lines
    assert not any(line.startswith(("recipe", "masking")) for line in lines if not line.startswith(message)), "contradictions"


def test_keys_of_losses_that_a_recipe_does_not_have_are_not_judged_by_their_own_rules():
    """Heads that do not divide the width are a mistake where heads are used; elsewhere the mistake is to set them."""
    lines = rules.mistakes(_config("dino", changes={"relation": {"heads": 5}}), devices=1, processes=1)
    [line] = [line for line in lines if not line.startswith("data.source")]
    assert line == "relation.heads: found 5, which is never read: no loss of recipe = dino reads it; expected its default, 0"
