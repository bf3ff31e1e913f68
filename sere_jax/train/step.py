"""The step of pre-training: augment, student, teacher, loss, update, the teacher's average.

It takes the method (an `Objective`) and the network (a `Forward`) as arguments and knows neither. Reductions are over
global arrays: under `jax.jit` with a sharded batch the same code is synchronised over any number of devices.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import jax
import optax

from sere_jax.ops.keys import example_keys, split_uses
from sere_jax.train.crossing import Crossing
from sere_jax.train.forward import Augment, Forward, Noise
from sere_jax.train.state import PretrainMethod, State
from sere_jax.train.update import LossOutput, descend, keep_finite, mean_gradients, read
from sere_jax.types import Metrics, Objective, Outputs, PyTree, Request, Schedule, Views


class Running(NamedTuple):
    """Running statistics of the BatchNorms of both networks; every micro-batch moves them."""

    student: PyTree
    teacher: PyTree


@dataclass(frozen=True, eq=False)  # compared by identity, so that it can be hashed by `jax.jit`
class PretrainStep:
    """The pure function `step(state, views) -> (state, metrics)`.

    `augment(views, keys)` makes normalised float crops from uint8 ones, with one key for each example. `drop_path_noise(keys, views)`
    draws the student's drop path. Keys are folded from (seed, step, position of the example in the global batch).

    With `accumulate_steps` the batch is cut into as many micro-batches. Losses, gradients and the objective's statistics are
    averaged; optimizer, teacher and the objective's state move once; running statistics move with every micro-batch. With a `crossing`
    (several devices) gradients are summed over the devices once a step; `forward` must have the same.

    `ema_timing`: the teacher follows the student `after` the update, `before` the step's forward passes (MoCo v3), or there is
    `none`. A step in which something is not finite is skipped (`update.keep_finite`). `logged` schedules are reported as metrics.
    """

    forward: Forward
    objective: Objective
    optimizer: optax.GradientTransformationExtraArgs
    augment: Augment
    drop_path_noise: Callable[[jax.Array, Views], Noise]
    ema_momentum: Schedule
    ema_timing: Literal["after", "before", "none"] = "after"
    accumulate_steps: int = 1
    crossing: Crossing | None = None
    seed: int = 0
    logged: Mapping[str, Schedule] = field(default_factory=dict)

    def __call__(self, state: State, views: Views) -> tuple[State, Metrics]:
        """One step on a global batch."""
        after, metrics = keep_finite(state, *self.propose(state, views))
        momentum_metric = {} if self.ema_timing == "none" else {"ema_momentum": self.ema_momentum(state.step)}
        return after, metrics | momentum_metric | read(self.logged, state.step)

    def propose(self, state: State, views: Views) -> tuple[State, PyTree, LossOutput]:
        """The state after the step, finite or not, the gradients and what the loss gave."""
        momentum = self.ema_momentum(state.step)
        if self.ema_timing == "before":
            state = state._replace(method=state.method._replace(teacher=follow(state.method.teacher, state.params, momentum)))
        method = state.method
        keys = example_keys(self.seed, state.step, views.index.shape[0])
        loss = functools.partial(self.loss, method, state.step)
        running = Running(state.batch_stats, method.teacher_batch_stats)

        gradients, output = mean_gradients(loss, state.params, running, views, keys, self.accumulate_steps, self.crossing)
        state = descend(state, gradients, self.optimizer)
        teacher = follow(method.teacher, state.params, momentum) if self.ema_timing == "after" else method.teacher
        objective = self.objective.update(method.objective, output.statistics)
        method = PretrainMethod(teacher, output.running.teacher, objective)
        return state._replace(batch_stats=output.running.student, method=method), gradients, output

    def loss(
        self, method: PretrainMethod, step: jax.Array, params: PyTree, running: Running, views: Views, keys: jax.Array
    ) -> tuple[jax.Array, LossOutput]:
        """The method's loss of one micro-batch, as a function of the student's parameters."""
        crop_keys, path_keys = split_uses(keys)
        crops = self.augment(views, crop_keys)
        noise = self.drop_path_noise(path_keys, views)
        student, student_stats = self.forward(params, running.student, *crops, self.requests("student"), views=views, drop_path_noise=noise)
        teacher, teacher_stats = self.teacher_outputs(method.teacher, running.teacher, crops, views)
        loss, statistics, metrics = self.objective.apply({**student, **teacher}, views, method.objective, step)
        return loss, LossOutput(Running(student_stats, teacher_stats), metrics, statistics)

    def teacher_outputs(
        self, teacher: PyTree, batch_stats: PyTree, crops: tuple[jax.Array, jax.Array], views: Views
    ) -> tuple[Outputs, PyTree]:
        """The teacher's outputs, without drop path. This is the only place that stops their gradient."""
        if not self.requests("teacher"):
            return {}, batch_stats
        outputs, stats = self.forward(teacher, batch_stats, *crops, self.requests("teacher"), views=views, drop_path_noise=None)
        return jax.lax.stop_gradient(outputs), stats

    def requests(self, side: Literal["student", "teacher"]) -> tuple[Request, ...]:
        """What the objective asks of one side."""
        return tuple(request for request in self.objective.requests if request.side == side)


def follow(teacher: PyTree, student: PyTree, momentum: jax.Array) -> PyTree:
    """momentum * teacher + (1 - momentum) * student, over the parameters that the teacher has.

    The student may have more, such as MoCo v3's predictor.
    """
    if isinstance(teacher, Mapping):
        return {name: follow(value, student[name], momentum) for name, value in teacher.items()}
    return momentum * teacher + (1.0 - momentum) * student
