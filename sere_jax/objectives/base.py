"""The sum that combines methods: a weighted sum of objectives is an objective again.

Every combination in the papers' tables is such a sum. The contract itself is `sere_jax.types.Objective`.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from sere_jax.types import Metrics, Objective, Outputs, PyTree, Views

Applied = tuple[jax.Array, PyTree, Metrics]  # loss, the objective's next state, metrics


def weighted_sum(terms: Mapping[str, tuple[float, Objective]]) -> Objective:
    """The objective sum_i weight_i * loss_i. Each term keeps its own state under its name; metrics are united.

    A weight of 0 keeps the term's metrics in the logs, and its heads' running statistics, without any gradient.
    Raises ValueError where two terms report a metric of the same name.
    """
    requests = tuple(dict.fromkeys(request for _, objective in terms.values() for request in objective.requests))

    def init() -> PyTree:
        return {name: objective.init() for name, (_, objective) in terms.items()}

    def apply(outputs: Outputs, views: Views, state: PyTree, step: jax.Array) -> Applied:
        total = jnp.zeros((), jnp.float32)
        states, metrics = {}, Metrics()
        for name, (weight, objective) in terms.items():
            loss, states[name], found = objective.apply(outputs, views, state[name], step)
            if clash := metrics.keys() & found.keys():
                raise ValueError(f"two objectives report {sorted(clash)}; the second is {name!r}")
            metrics |= found
            total = total + weight * loss
        return total, states, metrics

    references = {key: value for _, objective in terms.values() for key, value in objective.references.items()}
    return Objective(requests, init, apply, references)
