"""Multinomial logistic regression with an L2 penalty, by L-BFGS on the devices of this process."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Bool, Float, Int

from sere_jax.evals.frozen.least_squares import Linear
from sere_jax.evals.network import EvalError

# DINOv2 tries 45 values of C, from 1e-6 to 1e5; every fourth is as good a choice within the error of 10 % of the images.
CS = tuple(float(f"1e{power}") for power in range(-6, 6))
_MEMORY = 10  # pairs of steps and gradients that L-BFGS remembers, as SciPy and scikit-learn

Params = tuple[jax.Array, jax.Array]  # kernel [d, c], bias [c]


class Fit(NamedTuple):
    """A classifier, and how its optimisation ended."""

    classifier: Linear
    steps: int
    gradient: float  # largest derivative of the objective, in absolute value


class Solver:
    """Fits images for several values of C, each from the solution of the last. It is compiled once for any part of the images.

    The objective is that of scikit-learn: C x (sum of cross-entropies) + |kernel|^2 / 2; the bias is not penalised. It is
    divided by C n before it is minimised. The rows are cut over the devices of this process; every process does the same work.

    Args:
      features, labels: of the images to fit.
      classes: number of classes.
      tolerance: the optimisation ends where no derivative of the divided objective is larger, ...
      max_steps: ... or after so many steps.

    Raises EvalError for no images, for features that are not finite and for labels that are no classes.

    >>> solver = Solver(np.eye(4, dtype=np.float32)[[0, 1] * 8], np.array([0, 1] * 8), classes=2)
    >>> solver.fit(1.0).classifier(np.eye(4, dtype=np.float32)).argmax(axis=1)[:2].tolist()
    [0, 1]
    """

    def __init__(
        self,
        features: Float[np.ndarray, "n d"],
        labels: Int[np.ndarray, " n"],
        *,
        classes: int,
        tolerance: float = 1e-6,
        max_steps: int = 1000,
    ) -> None:
        _check(features, labels, classes)
        devices = jax.local_devices()
        mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)
        rows, self._whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
        self._rows, self._images, self._padding = rows, len(labels), -len(labels) % len(devices)
        padded = np.pad(np.asarray(features, np.float32), ((0, self._padding), (0, 0))), np.pad(labels.astype(np.int32), (0, self._padding))
        self._data = jax.device_put(padded, (rows, rows))
        self._tolerance, self._max_steps = np.float32(tolerance), np.int32(max_steps)
        self._last = Linear(np.zeros((features.shape[1], classes), np.float32), np.zeros(classes, np.float32))

    def fit(self, c: float, use: Bool[np.ndarray, " n"] | None = None, *, start: Linear | None = None) -> Fit:
        """Minimise the objective of the images in `use` (None: all) for one C, from `start` (None: the last solution, at first 0)."""
        used = np.ones(self._images, np.bool_) if use is None else use
        weights = np.pad(used / used.sum(), (0, self._padding)).astype(np.float32)  # 0 for the rows that fill up a device's share
        data = (*self._data, jax.device_put(weights, self._rows))
        penalty = np.float32(1 / (c * used.sum()))
        first = jax.device_put(tuple(start or self._last), self._whole)
        params, steps, gradient = jax.device_get(_minimise(first, data, penalty, self._tolerance, self._max_steps))
        self._last = Linear(*params)
        return Fit(self._last, int(steps), float(gradient))

    def path(self, cs: Sequence[float], use: Bool[np.ndarray, " n"] | None = None) -> Iterator[tuple[float, Fit]]:
        """Yield (C, fit) by rising C. Small values converge within a few steps, and each is a good start for the next."""
        for c in sorted(cs):
            yield c, self.fit(c, use)


def _check(features: np.ndarray, labels: np.ndarray, classes: int) -> None:
    if not len(labels):
        raise EvalError("features: found no images; expected at least one")
    if not np.isfinite(features).all():
        raise EvalError("features: found numbers that are not finite; expected finite ones")
    if labels.min() < 0 or labels.max() >= classes:
        raise EvalError(f"labels: found {labels.min()} to {labels.max()}; expected 0 to {classes - 1}")


def _objective(params: Params, data: Any, penalty: jax.Array) -> jax.Array:
    """Mean cross-entropy + penalty |kernel|^2 / 2; `data` are features, labels, and weights that sum to 1."""
    features, labels, weights = data
    logits = jnp.matmul(features, params[0], precision="highest") + params[1]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.sum(losses * weights) + penalty / 2 * jnp.sum(params[0] ** 2)


@jax.jit
def _minimise(start: Params, data: Any, penalty: Any, tolerance: Any, max_steps: Any) -> tuple[Params, jax.Array, jax.Array]:
    """L-BFGS with a zoom line search; returns parameters, steps and the largest derivative."""
    optimizer = optax.lbfgs(memory_size=_MEMORY)
    objective: Callable[[Params], jax.Array] = functools.partial(_objective, data=data, penalty=penalty)
    evaluate = optax.value_and_grad_from_state(objective)

    def step(carry: Any) -> Any:
        params, state, count, _ = carry
        value, gradient = evaluate(params, state=state)
        updates, state = optimizer.update(gradient, state, params, value=value, grad=gradient, value_fn=objective)
        largest = jnp.maximum(*(jnp.max(jnp.abs(leaf)) for leaf in optax.tree.get(state, "grad")))  # at the new parameters
        return optax.apply_updates(params, updates), state, count + 1, largest

    def unfinished(carry: Any) -> jax.Array:
        return (carry[2] < max_steps) & (carry[3] > tolerance)

    params, _, count, largest = jax.lax.while_loop(unfinished, step, (start, optimizer.init(start), jnp.int32(0), jnp.float32(jnp.inf)))
    return params, count, largest
