"""One update of a `State` by any loss: gradients over micro-batches, the optimizer, and a guard against values that are not finite.

Pre-training (`train.step`) puts the three parts together with a teacher; an evaluation that trains takes `make_update` as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from einops import rearrange

from sere_jax.ops.keys import example_keys
from sere_jax.train.crossing import Crossing
from sere_jax.train.finite import is_sound
from sere_jax.train.state import State
from sere_jax.types import Metrics, PyTree, Schedule


class LossOutput(NamedTuple):
    """What a loss returns beside its value."""

    running: PyTree  # running statistics of BatchNorms, moved by this micro-batch; the next one starts from them
    metrics: Metrics  # scalars, averaged over the micro-batches
    statistics: PyTree = {}  # float arrays, averaged over the micro-batches; what a method's state is moved by


@runtime_checkable
class Loss(Protocol):
    """(parameters, running statistics, batch, one key an example) -> (scalar, `LossOutput`)."""

    def __call__(self, params: PyTree, running: PyTree, batch: PyTree, keys: jax.Array) -> tuple[jax.Array, LossOutput]: ...


def make_update(
    *,
    loss: Loss,
    optimizer: optax.GradientTransformationExtraArgs,
    accumulate_steps: int = 1,
    seed: int = 0,
    logged: Mapping[str, Schedule] = MappingProxyType({}),
) -> Callable[[State, PyTree], tuple[State, Metrics]]:
    """Build `update(state, batch) -> (state, metrics)` for a loss of parameters and running statistics alone.

    Every leaf of `batch` has the examples on axis 0. Keys are folded from (seed, step, position of the example in the global batch).
    `logged` schedules are reported with the metrics. `state.method` stays as it is. A head trained by a quadratic loss:

    >>> def loss(params, running, batch, keys):
    ...     error = jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2)
    ...     return error, LossOutput(running, {"error": error})
    >>> update = make_update(loss=loss, optimizer=optax.with_extra_args_support(optax.sgd(0.1)), accumulate_steps=2)
    >>> params, zero = {"w": jnp.zeros((3, 1))}, jnp.int32(0)
    >>> state = State(zero, params, {}, optax.sgd(0.1).init(params), zero, {})
    >>> state, metrics = update(state, {"x": jnp.ones((4, 3)), "y": jnp.ones((4, 1))})
    >>> int(state.step), float(metrics["error"]), float(metrics["bad_step"])
    (1, 1.0, 0.0)
    """

    def update(state: State, batch: PyTree) -> tuple[State, Metrics]:
        keys = example_keys(seed, state.step, jax.tree.leaves(batch)[0].shape[0])
        gradients, output = mean_gradients(loss, state.params, state.batch_stats, batch, keys, accumulate_steps)
        after = descend(state, gradients, optimizer)._replace(batch_stats=output.running)
        after, metrics = keep_finite(state, after, gradients, output)
        return after, metrics | read(logged, state.step)

    return update


def mean_gradients(
    loss: Loss,
    params: PyTree,
    running: PyTree,
    batch: PyTree,
    keys: jax.Array,
    accumulate_steps: int,
    crossing: Crossing | None = None,
) -> tuple[PyTree, LossOutput]:
    """The gradient of the loss, averaged over `accumulate_steps` micro-batches of equal size; their outputs alike.

    The loss's value is added to the metrics as `loss`. Running statistics pass from one micro-batch to the next. With a `crossing` the
    loss gets a copy of the parameters for each device, and the sum over the devices is taken once, after the last micro-batch.
    """
    if crossing is not None:
        total, output = mean_gradients(loss, crossing.spread(params), running, batch, keys, accumulate_steps)
        return crossing.sum(total), output

    def micro_step(running: PyTree, total: PyTree, batch: PyTree, keys: jax.Array) -> tuple[PyTree, LossOutput]:
        (value, output), gradients = jax.value_and_grad(loss, has_aux=True)(params, running, batch, keys)
        total = jax.tree.map(lambda a, g: a + g / accumulate_steps, total, gradients)
        return total, output._replace(metrics=output.metrics | {"loss": value})

    def body(carry: tuple[PyTree, PyTree], part: tuple[PyTree, jax.Array]) -> tuple[tuple[PyTree, PyTree], LossOutput]:
        running, total = carry
        total, output = micro_step(running, total, *part)
        return (output.running, total), output._replace(running={})

    zeros = jax.tree.map(jnp.zeros_like, params)
    if accumulate_steps == 1:
        return micro_step(running, zeros, batch, keys)
    (running, total), outputs = jax.lax.scan(body, (running, zeros), micro_batches((batch, keys), accumulate_steps))
    return total, jax.tree.map(lambda x: jnp.mean(x, axis=0), outputs)._replace(running=running)


def micro_batches(batch: PyTree, count: int) -> PyTree:
    """Cut axis 0 of every leaf into `count` micro-batches: [b, ...] -> [count, b / count, ...].

    Micro-batch j holds the rows j, j + count, ...: a contiguous cut would move rows between devices. optax's
    `microbatching.reshape_batch_axis` makes the same cut, but cannot reshape leaves without elements (views without local crops).
    """
    return jax.tree.map(lambda x: rearrange(x, "(rows micro) ... -> micro rows ...", micro=count), batch)


def descend(state: State, gradients: PyTree, optimizer: optax.GradientTransformationExtraArgs) -> State:
    """The state with new parameters and a new optimizer state. The optimizer is told the step: skipped steps count too."""
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params, step=state.step)
    return state._replace(params=optax.apply_updates(state.params, updates), opt_state=opt_state)


def keep_finite(before: State, after: State, gradients: PyTree, output: LossOutput) -> tuple[State, Metrics]:
    """Take the step, or leave everything as it was but `step` and `bad_steps` where something is not finite.

    The loss, the gradients' norm, the method's statistics and the whole new state are looked at: a moment of 1e38 makes finite parameters
    that are lost all the same. optax's `apply_if_finite` would guard parameters and optimizer alone: teacher and statistics must stay
    with them. Returns the state after the step, and the metrics with
    `grad_norm` and `bad_step` (1 where the step was skipped).
    """
    norm = optax.tree.norm(gradients)
    finite = is_sound((after, output.statistics, norm, output.metrics["loss"]))
    state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, before)
    bad = 1 - finite.astype(jnp.int32)
    metrics = output.metrics | {"grad_norm": norm, "bad_step": bad.astype(jnp.float32)}
    return state._replace(step=before.step + 1, bad_steps=before.bad_steps + bad), metrics


def read(schedules: Mapping[str, Schedule], step: jax.Array) -> Metrics:
    """The values of schedules at a step, as metrics."""
    return {name: jnp.asarray(schedule(step), jnp.float32) for name, schedule in schedules.items()}
