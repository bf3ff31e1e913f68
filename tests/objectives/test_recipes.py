"""The table of methods: which losses, with which weights (SPEC 1.4, 8.5)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sere_jax.objectives.base import combine, weighted_sum
from sere_jax.objectives.recipes import RECIPES
from sere_jax.types import Objective, Request
from tests import micro

VIEWS = micro.views(micro.config())  # nothing here looks at them
STEP = jnp.zeros((), jnp.int32)


def _constant(name: str, value: float, *extra: Request) -> Objective:
    """An objective whose loss is `value` whatever comes; its state adds up what `apply` says, which is `value` again."""

    def apply(outputs, views, state, step):
        return jnp.float32(value), {"seen": value}, {name: jnp.float32(value)}

    def update(state, statistics):
        return {"total": state["total"] + statistics["seen"]}

    requests = (Request(name, "global", "cls", "post", "student"), *extra)
    return Objective(requests, lambda: {"total": 5.0}, apply, update, {name: 10 * value})


VALUES = {"dino": 1.0, "patch": 3.0, "aligned": 5.0, "batch": 7.0, "mocov3": 9.0, "mae": 11.0, "spatial": 100.0, "channel": 10000.0}
PARTS = {name: _constant(name, value) for name, value in VALUES.items()}


def _total(recipe: str, alpha: float, beta: float, image_weight: str = "code") -> float:
    method = combine(RECIPES[recipe], PARTS, alpha=float(alpha), beta=float(beta), image_weight=image_weight)
    return float(method.apply({}, VIEWS, method.init(), STEP)[0])


# Totals by hand. alpha = 0.2 and beta = 0.5, so spatial adds 20 and channel 5000. The image losses add 1 (DINO), 1 + 3 (iBOT),
# 1 + 5 (DINO+) or 9 (MoCo v3), times 1.65 beside both relations, 1.4 beside spatial alone, 1.25 beside channel alone.
BY_HAND = {
    "dino": 1.0,
    "dino_sere": 5021.65,
    "dino_spatial": 21.4,
    "dino_channel": 5001.25,
    "dino_barlow": 8.0,
    "dinoplus": 6.0,
    "dinoplus_sere": 5029.9,
    "ibot": 4.0,
    "ibot_sere": 5026.6,
    "mocov3": 9.0,
    "mocov3_sere": 5034.85,
    "mae": 11.0,
    "spatial": 20.0,
    "channel": 5000.0,
    "spatial_channel": 5020.0,
}
# The same with the paper's weight of the image losses, which is 1; those that are not named do not change.
BY_HAND_PAPER = {
    "dino_sere": 5021.0,
    "dino_spatial": 21.0,
    "dino_channel": 5001.0,
    "dinoplus_sere": 5026.0,
    "ibot_sere": 5024.0,
    "mocov3_sere": 5029.0,
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_total_of_each_recipe_is_the_one_made_by_hand(recipe: str):
    # 1e-6: sums of a few float32 numbers
    assert _total(recipe, 0.2, 0.5) == pytest.approx(BY_HAND[recipe], rel=1e-6)
    assert _total(recipe, 0.2, 0.5, "paper") == pytest.approx(BY_HAND_PAPER.get(recipe, BY_HAND[recipe]), rel=1e-6)


@pytest.mark.parametrize("image_weight", ["code", "paper"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_weight_of_a_loss_that_the_recipe_does_not_have_changes_nothing(recipe: str, image_weight: str):
    relations = RECIPES[recipe].relations
    moved = _total(recipe, 0.2 if "spatial" in relations else 3.0, 0.5 if "channel" in relations else 7.0, image_weight)
    assert moved == _total(recipe, 0.2, 0.5, image_weight)


def test_weights_of_one_give_the_image_loss_the_weight_one_and_weights_of_zero_double_it():
    assert (_total("dino_sere", 1, 1), _total("dino_spatial", 1, 1), _total("dino_channel", 1, 1)) == (10101.0, 101.0, 10001.0)
    assert (_total("dino_sere", 0, 0), _total("dino_spatial", 0, 0), _total("dino_channel", 0, 0)) == (2.0, 1.5, 1.5)


def test_factors_of_single_losses():
    """iBOT + SERE's total: (lambda_1 cls + lambda_2 patch) (4 - alpha - beta) / 2 + alpha spatial + beta channel."""
    settings = {"alpha": 0.2, "beta": 0.5, "image_weight": "code"}
    method = combine(RECIPES["ibot_sere"], PARTS, **settings, weights={"patch": 2.0, "batch": 9.0})
    total = method.apply({}, VIEWS, method.init(), STEP)[0]
    assert float(total) == pytest.approx(1.65 * (1 + 2 * 3) + 0.2 * 100 + 0.5 * 10000)


def test_a_sum_unites_requests_states_metrics_and_references():
    shared = Request("shared", "local", "patches", "pre", "student")
    method = weighted_sum({"a": (2.0, _constant("a", 1.0, shared)), "b": (0.0, _constant("b", 3.0, shared))})
    assert [request.head for request in method.requests] == ["a", "shared", "b"]
    loss, statistics, metrics = method.apply({}, VIEWS, method.init(), STEP)
    assert float(loss) == 2.0 and method.update(method.init(), statistics) == {"a": {"total": 6.0}, "b": {"total": 8.0}}
    assert {name: float(value) for name, value in metrics.items()} == {"a": 1.0, "b": 3.0}
    assert method.references == {"a": 10.0, "b": 30.0}


def test_two_objectives_with_one_metric_are_refused():
    method = weighted_sum({"x": (1.0, _constant("a", 1.0)), "y": (1.0, _constant("a", 1.0))})
    with pytest.raises(ValueError, match=r"two objectives report \['a'\]; the second is 'y'"):
        method.apply({}, VIEWS, method.init(), STEP)


@pytest.mark.parametrize("weight", [0.0, 3.0])
def test_a_weight_of_zero_gives_no_gradient(weight: float):
    request = Request("x", "global", "cls", "post", "student")

    def apply(outputs, views, state, step):
        return outputs[request] ** 2, {}, {"x": outputs[request]}

    method = weighted_sum({"a": (weight, Objective((request,), dict, apply, lambda state, statistics: state, {}))})
    gradient = jax.grad(lambda x: method.apply({request: x}, VIEWS, method.init(), STEP)[0])(2.0)
    np.testing.assert_array_equal(gradient, weight * 4)
