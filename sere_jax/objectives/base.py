"""The sum that combines methods: a weighted sum of objectives is an objective again.

Every combination in the papers' tables is such a sum. The contract itself is `sere_jax.types.Objective`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

import jax
import jax.numpy as jnp

from sere_jax.objectives.recipes import Recipe
from sere_jax.types import Metrics, Objective, Outputs, PyTree, Request, Views

Applied = tuple[jax.Array, PyTree, Metrics]  # loss, the micro-batch's statistics, metrics


def stateless(
    requests: tuple[Request, ...],
    loss: Callable[[Outputs, Views, jax.Array], tuple[jax.Array, Metrics]],
    references: Mapping[str, float],
) -> Objective:
    """An objective without a state: `loss(outputs, views, step) -> (loss, metrics)` defines it."""

    def apply(outputs: Outputs, views: Views, state: PyTree, step: jax.Array) -> Applied:
        value, metrics = loss(outputs, views, step)
        return value, {}, metrics

    return Objective(requests, dict, apply, lambda state, statistics: state, references)


def weighted_sum(terms: Mapping[str, tuple[float, Objective]]) -> Objective:
    """The objective sum_i weight_i * loss_i. Each term keeps its own state under its name; metrics are united.

    A term of weight 0 has no gradient, but still reports its metrics and updates the running statistics of its heads.
    Raises ValueError where two terms report a metric of the same name.
    """
    requests = tuple(dict.fromkeys(request for _, objective in terms.values() for request in objective.requests))

    def init() -> PyTree:
        return {name: objective.init() for name, (_, objective) in terms.items()}

    def apply(outputs: Outputs, views: Views, state: PyTree, step: jax.Array) -> Applied:
        total = jnp.zeros((), jnp.float32)
        statistics, metrics = {}, Metrics()
        for name, (weight, objective) in terms.items():
            loss, statistics[name], reported = objective.apply(outputs, views, state[name], step)
            if clash := metrics.keys() & reported.keys():
                raise ValueError(f"two objectives report {sorted(clash)}; the second is {name!r}")
            metrics |= reported
            total = total + weight * loss
        return total, statistics, metrics

    def update(state: PyTree, statistics: PyTree) -> PyTree:
        return {name: objective.update(state[name], statistics[name]) for name, (_, objective) in terms.items()}

    references = {key: value for _, objective in terms.values() for key, value in objective.references.items()}
    return Objective(requests, init, apply, update, references)


def combine(
    recipe: Recipe,
    parts: Mapping[str, Objective],
    *,
    alpha: float,
    beta: float,
    image_weight: Literal["code", "paper"],
    weights: Mapping[str, float] = MappingProxyType({}),
) -> Objective:
    """The recipe's weighted sum: w * (image losses) + alpha * spatial + beta * channel; `weights` are factors of single losses.

    w is `image_loss_weight` under `image_weight="code"`, and 1 under "paper" (the paper's equation 6). Under "code",
    alpha = beta = 0 doubles the image loss of a recipe with both self-relations.
    """
    image = image_loss_weight(recipe, alpha, beta) if image_weight == "code" else 1.0
    base = {"spatial": alpha, "channel": beta, **dict.fromkeys(recipe.image, image)}
    return weighted_sum({name: (base.get(name, 1.0) * weights.get(name, 1.0), parts[name]) for name in recipe.losses})


def image_loss_weight(recipe: Recipe, alpha: float, beta: float) -> float:
    """The weight of the image losses in the authors' released training: (4 - alpha - beta) / 2 beside both self-relations.

    With one self-relation the weight is (3 - weight) / 2, with none it is 1. The weight of a loss that is not in the recipe therefore
    does not matter, and weights of 1 always give 1.

    Example:
      >>> from sere_jax.objectives.recipes import RECIPES
      >>> [image_loss_weight(RECIPES[name], 0.5, 0.25) for name in ("dino_sere", "dino_spatial", "dino_channel", "dino")]
      [1.625, 1.25, 1.375, 1.0]
    """
    present = [weight for name, weight in (("spatial", alpha), ("channel", beta)) if name in recipe.relations]
    total = 2.0 + len(present)
    for weight in present:
        total -= weight
    return total / 2.0
