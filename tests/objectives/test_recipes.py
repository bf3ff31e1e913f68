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


@pytest.mark.parametrize(("alpha", "beta", "factor"), [(1, 1, 1.0), (0.2, 0.5, 1.65), (0, 0, 2.0)])
def test_weight_of_the_image_loss(alpha: float, beta: float, factor: float):
    assert _total("dino_sere", alpha, beta) == pytest.approx(factor + 100 * alpha + 10000 * beta, rel=1e-6)
    assert _total("dino_sere", alpha, beta, "paper") == pytest.approx(1 + 100 * alpha + 10000 * beta, rel=1e-6)


@pytest.mark.parametrize("image_weight", ["code", "paper"])
def test_each_part_can_stand_alone(image_weight: str):
    totals = {name: _total(name, 0.5, 0.5, image_weight) for name, recipe in RECIPES.items() if set(recipe.losses) <= set(PARTS)}
    image = 1.5 if image_weight == "code" else 1.0
    expected = {
        "dino": 1.0,
        "dino_sere": image + 50 + 5000,
        "dino_spatial": image + 50,
        "dino_channel": image + 5000,
        "spatial": 50,
        "channel": 5000,
        "spatial_channel": 5050,
        "ibot": 4.0,
        "ibot_sere": 4 * image + 5050,
        "dinoplus": 6.0,
        "dinoplus_sere": 6 * image + 5050,
        "mocov3": 9.0,
        "mae": 11.0,
        "mocov3_sere": 9 * image + 5050,
        "dino_barlow": 1 + 7,  # no self-relation, so alpha and beta say nothing of the image loss
    }
    assert {name: totals[name] for name in expected} == pytest.approx(expected)


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
