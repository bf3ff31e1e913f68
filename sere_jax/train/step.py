"""The train step, one pure function: photometry -> forward -> loss -> gradients -> update -> EMA teacher.

It takes the method (an `Objective`) and the network (a forward function) as arguments and knows neither. Reductions are over
global arrays: under `jax.jit` with a sharded batch the same code is synchronised over any number of devices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float

from sere_jax.ops.keys import example_keys, split_uses
from sere_jax.train.state import TrainState
from sere_jax.types import Metrics, Objective, Outputs, PyTree, Request, Schedule, Views

Noise = tuple[Float[jax.Array, "b v k 2"], Float[jax.Array, "b l k 2"]] | None
Augment = Callable[[Views, jax.Array], tuple[jax.Array, jax.Array]]


@runtime_checkable
class Forward(Protocol):
    """One side's network: parameters, its running statistics and normalised views -> outputs and new running statistics.

    The sides see the same `views`: masks (which hide patches from the student alone) and the geometry of the crops.
    """

    def __call__(
        self,
        params: PyTree,
        batch_stats: PyTree,
        global_views: jax.Array,
        local_views: jax.Array,
        requests: tuple[Request, ...],
        *,
        views: Views,
        drop_path_noise: Noise,
    ) -> tuple[Outputs, PyTree]: ...


class _Carry(NamedTuple):
    """What micro-batches pass on: the sum of gradients, and running statistics, which each of them updates."""

    gradients: PyTree
    batch_stats: PyTree
    teacher_batch_stats: PyTree


def make_train_step(
    *,
    forward: Forward,
    objective: Objective,
    optimizer: optax.GradientTransformationExtraArgs,
    augment: Augment,
    drop_path_noise: Callable[[jax.Array, Views], Noise],
    ema_momentum: Schedule,
    ema_timing: Literal["after", "before", "none"] = "after",
    accumulate_steps: int = 1,
    seed: int = 0,
    logged: Mapping[str, Schedule] = MappingProxyType({}),
) -> Callable[[TrainState, Views], tuple[TrainState, Metrics]]:
    """Build `train_step(state, views) -> (state, metrics)`.

    `augment(views, keys)` makes normalised float views from uint8 ones with one key an example; `drop_path_noise(keys, views)`
    the student's drop path. Keys are folded from (seed, step, position of the example in the global batch).
    With `accumulate_steps` the batch is cut into as many micro-batches: losses and gradients are averaged, the optimizer, the
    teacher and the objective's state move once, BatchNorm statistics with every micro-batch. A step whose loss or gradient is
    not finite leaves everything but `step` and `bad_steps` as it was, and reports `bad_step` = 1. The values of
    `logged` schedules stand among the metrics.
    """
    sides = {side: tuple(r for r in objective.requests if r.side == side) for side in ("student", "teacher")}

    def loss_of(params: PyTree, carry: _Carry, state: TrainState, views: Views, keys: jax.Array) -> tuple[jax.Array, tuple]:
        crop_keys, path_keys = split_uses(keys)
        crops = augment(views, crop_keys)
        noise = drop_path_noise(path_keys, views)
        student, stats = forward(params, carry.batch_stats, *crops, sides["student"], views=views, drop_path_noise=noise)
        teacher, teacher_stats = Outputs(), carry.teacher_batch_stats
        if sides["teacher"]:
            teacher, teacher_stats = forward(state.teacher, teacher_stats, *crops, sides["teacher"], views=views, drop_path_noise=None)
        loss, objective_state, metrics = objective.apply({**student, **jax.lax.stop_gradient(teacher)}, views, state.objective, state.step)
        return loss, (stats, teacher_stats, objective_state, metrics | {"loss": loss})

    def micro_step(state: TrainState, carry: _Carry, views: Views, keys: jax.Array) -> tuple[_Carry, tuple[PyTree, dict]]:
        gradients, found = jax.grad(loss_of, has_aux=True)(state.params, carry, state, views, keys)
        stats, teacher_stats, objective_state, metrics = found
        total = jax.tree.map(lambda a, g: a + g / accumulate_steps, carry.gradients, gradients)
        return _Carry(total, stats, teacher_stats), (objective_state, metrics)

    def train_step(state: TrainState, views: Views) -> tuple[TrainState, Metrics]:
        before = state
        if ema_timing == "before":
            state = state._replace(teacher=_ema(state.teacher, state.params, ema_momentum(state.step)))
        keys = example_keys(seed, state.step, views.index.shape[0])
        carry = _Carry(jax.tree.map(jnp.zeros_like, state.params), state.batch_stats, state.teacher_batch_stats)
        carry, (objective_state, metrics) = _over_micro_batches(micro_step, state, carry, views, keys, accumulate_steps)
        updates, opt_state = optimizer.update(carry.gradients, state.opt_state, state.params, step=state.step)
        params = optax.apply_updates(state.params, updates)
        momentum = ema_momentum(state.step)
        teacher = _ema(state.teacher, params, momentum) if ema_timing == "after" else state.teacher
        norm = optax.tree.norm(carry.gradients)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
        after = TrainState(
            state.step, params, carry.batch_stats, teacher, carry.teacher_batch_stats, opt_state, objective_state, state.bad_steps
        )
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, before)
        bad = 1 - finite.astype(jnp.int32)
        metrics |= {"grad_norm": norm, "bad_step": bad.astype(jnp.float32)}
        metrics |= {} if ema_timing == "none" else {"ema_momentum": momentum}
        metrics |= {name: jnp.asarray(schedule(state.step), jnp.float32) for name, schedule in logged.items()}
        return kept._replace(step=before.step + 1, bad_steps=before.bad_steps + bad), metrics

    return train_step


def _ema(teacher: PyTree, student: PyTree, momentum: jax.Array) -> PyTree:
    """The moving average of the parameters that the teacher holds; the student may have more, such as MoCo v3's predictor."""
    if isinstance(teacher, Mapping):
        return {name: _ema(value, student[name], momentum) for name, value in teacher.items()}
    return momentum * teacher + (1.0 - momentum) * student


def _over_micro_batches(
    micro_step: Callable, state: TrainState, carry: _Carry, views: Views, keys: jax.Array, parts: int
) -> tuple[_Carry, tuple[PyTree, Metrics]]:
    """Run `micro_step` on each of `parts` micro-batches; average what they return.

    Micro-batch j holds the rows j, j + parts, ...: a contiguous cut would move rows between the devices. Averaging the
    objective's states is one update with the averaged statistics, because its updates are linear in them.
    """
    if parts == 1:
        return micro_step(state, carry, views, keys)

    def part(j: jax.Array, x: jax.Array) -> jax.Array:
        return x.reshape(x.shape[0] // parts, parts, *x.shape[1:])[:, j]

    def body(carry: _Carry, j: jax.Array) -> tuple[_Carry, tuple[PyTree, Metrics]]:
        return micro_step(state, carry, *jax.tree.map(lambda x: part(j, x), (views, keys)))

    carry, found = jax.lax.scan(body, carry, jnp.arange(parts))
    return carry, jax.tree.map(lambda x: jnp.mean(x, axis=0), found)
