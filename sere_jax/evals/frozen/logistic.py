"""Multinomial logistic regression with an L2 penalty, by L-BFGS on the devices of this process."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Bool, Float, Int

from sere_jax.evals.frozen.least_squares import Linear
from sere_jax.evals.network import EvalError

# DINOv2 tries 45 values of C, from 1e-6 to 1e5; every fourth is as good a choice within the error of 10 % of the images.
CS = tuple(float(f"1e{power}") for power in range(-6, 6))
_PARTS = 8  # of the images; each is summed by one device, and the sums are added in order
_MEMORY = 10  # pairs of steps and gradients that L-BFGS remembers, as SciPy and scikit-learn

Params = tuple[jax.Array, jax.Array]  # kernel [d, c], bias [c]
Data = tuple[jax.Array, jax.Array, jax.Array]  # features [p, m, d], labels [p, m], weights [p, m], which sum to 1; of p parts


class Fit(NamedTuple):
    """A classifier, and how its optimisation ended."""

    classifier: Linear
    steps: int
    gradient: float  # largest derivative of the objective, in absolute value


class Solver:
    """Fits images for several values of C, each from the solution of the last. It is compiled once for any part of the images.

    The objective is that of scikit-learn: C x (sum of cross-entropies) + |kernel|^2 / 2; the bias is not penalised. It is
    divided by C n before it is minimised. The images are cut into 8 parts, which 1, 2, 4 or 8 devices of this process share. Their
    sums are added in the same order everywhere, because L-BFGS magnifies a rounding some thousand times. Every process does the
    same work.

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
        count = max(number for number in (1, 2, 4, _PARTS) if number <= len(devices))
        self._mesh = jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=devices[:count])
        self._split, self._whole = NamedSharding(self._mesh, PartitionSpec("data")), NamedSharding(self._mesh, PartitionSpec())
        self._images = len(labels)
        self._data = jax.device_put((_parts(np.asarray(features, np.float32)), _parts(labels.astype(np.int32))), self._split)
        self._tolerance, self._max_steps = np.float32(tolerance), np.int32(max_steps)
        self._last = Linear(np.zeros((features.shape[1], classes), np.float32), np.zeros(classes, np.float32))

    def fit(self, c: float, use: Bool[np.ndarray, " n"] | None = None, *, start: Linear | None = None) -> Fit:
        """Minimise the objective of the images in `use` (None: all) for one C, from `start` (None: the last solution, at first 0)."""
        used = np.ones(self._images, np.bool_) if use is None else use
        weights = _parts((used / used.sum()).astype(np.float32))  # 0 for the rows that fill up the last part
        data = (*self._data, jax.device_put(weights, self._split))
        penalty = np.float32(1 / (c * used.sum()))
        first = jax.device_put(tuple(start or self._last), self._whole)
        params, steps, gradient = jax.device_get(_minimise(first, data, penalty, self._tolerance, self._max_steps, mesh=self._mesh))
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


def _parts(rows: np.ndarray) -> np.ndarray:
    """[n, ...] -> [parts, rows of a part, ...], filled up with zeros."""
    padded = np.pad(rows, ((0, -len(rows) % _PARTS), *((0, 0) for _ in rows.shape[1:])))
    return padded.reshape(_PARTS, -1, *rows.shape[1:])


def _part_loss(params: Params, part: Data) -> jax.Array:
    """The sum of weighted cross-entropies of one part; `part` is features, labels and weights."""
    features, labels, weights = part
    logits = jnp.matmul(features, params[0], precision="highest") + params[1]
    return jnp.sum(optax.softmax_cross_entropy_with_integer_labels(logits, labels) * weights)


def _in_order(mesh: Mesh) -> Callable[[Params, Data], tuple[jax.Array, Params]]:
    """A function that adds the losses of all parts, and their gradients, in the order of the parts."""

    def sums(params: Params, data: Data) -> tuple[jax.Array, Params]:
        each = jax.lax.map(lambda part: jax.value_and_grad(_part_loss)(params, part), data)
        everything = jax.lax.all_gather(each, "data", tiled=True)
        return jax.tree.map(lambda x: functools.reduce(jnp.add, [x[part] for part in range(_PARTS)]), everything)

    whole, split = PartitionSpec(), PartitionSpec("data")
    return jax.shard_map(sums, mesh=mesh, in_specs=(whole, split), out_specs=whole, check_vma=False)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _mean_loss(params: Params, data: Data, mesh: Mesh) -> jax.Array:
    """The mean cross-entropy. Its derivative is written out: automatic differentiation would add the parts in another order."""
    return _in_order(mesh)(params, data)[0]


def _forward(params: Params, data: Data, mesh: Mesh) -> tuple[jax.Array, Params]:
    return _in_order(mesh)(params, data)


def _backward(mesh: Mesh, gradient: Params, scale: jax.Array) -> tuple[Params, None]:
    return jax.tree.map(lambda leaf: scale * leaf, gradient), None


_mean_loss.defvjp(_forward, _backward)


def _objective(params: Params, data: Data, penalty: jax.Array, mesh: Mesh) -> jax.Array:
    """Mean cross-entropy + penalty |kernel|^2 / 2."""
    return _mean_loss(params, data, mesh) + penalty / 2 * jnp.sum(params[0] ** 2)


@functools.partial(jax.jit, static_argnames="mesh")
def _minimise(
    start: Params, data: Data, penalty: Any, tolerance: Any, max_steps: Any, *, mesh: Mesh
) -> tuple[Params, jax.Array, jax.Array]:
    """L-BFGS with a zoom line search; returns parameters, steps and the largest derivative."""
    optimizer = optax.lbfgs(memory_size=_MEMORY)
    objective: Callable[[Params], jax.Array] = functools.partial(_objective, data=data, penalty=penalty, mesh=mesh)
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
