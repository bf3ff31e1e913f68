"""The driver of every evaluation that trains: a loss, an optimizer and batches in; the best and the last weights out.

It is built on `train.update` and `train.fit`, as pre-training is. A training is resumed from its newest checkpoint, is evaluated every so
many steps, and gives the same result on any number of devices and processes, to float tolerance.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sere_jax import distributed, sharding
from sere_jax.buckets import Location
from sere_jax.config.names import flatten
from sere_jax.evals.features import to_host
from sere_jax.evals.network import EvalError
from sere_jax.reporting.progress import Progress
from sere_jax.train.checkpoint import CheckpointError, read_config
from sere_jax.train.checkpoint_manager import Checkpoints
from sere_jax.train.evaluations import Periodic
from sere_jax.train.fit import fit
from sere_jax.train.lock import locked
from sere_jax.train.meter import Limits, Work
from sere_jax.train.scores import Best
from sere_jax.train.state import State
from sere_jax.train.update import Loss, make_update
from sere_jax.types import PyTree, Schedule

Evaluate = Callable[[PyTree, PyTree], Iterable[tuple[str, float]]]  # parameters, running statistics -> (score, value)


@dataclasses.dataclass(frozen=True)
class Training:
    """One training of an evaluation.

    Attributes:
      kind: stands in the checkpoints' description: linear, fine_tune, segmentation, detection.
      loss, optimizer: as `train.update.make_update` takes them.
      init: makes the parameters and running statistics to start from, as host arrays. Called only where there is no checkpoint.
      batches: step -> this process's rows of the batches from that step on; every leaf has the examples on axis 0.
      prepare: device batch -> what `loss` and `replaced` take. It runs ahead of the update and outside of it: a frozen network's
        features, so that its parameters are no part of the state.
      replaced: device batch -> True for rows that stand in for an unreadable example.
      evaluate: yields scores; called every `every_steps` steps and after the last.
      best: the score whose largest value names the best weights.
      description: JSON-able; all that determines the training. It is saved with every checkpoint as its config.
      network: JSON-able; what reading the weights needs, saved with every checkpoint. The training does not depend on it.
      references: by metric, the value when nothing is learned, for the display.
      logged: schedules to log.
      max_bad_fraction: the largest share of unreadable images that the training bears.
    """

    kind: str
    loss: Loss
    optimizer: optax.GradientTransformationExtraArgs
    init: Callable[[], tuple[PyTree, PyTree]]
    batches: Callable[[int], Iterator[Any]]
    replaced: Callable[[Any], jax.Array]
    batch_size: int
    steps_per_epoch: int
    total_steps: int
    evaluate: Evaluate
    every_steps: int
    best: str
    description: Mapping[str, Any]
    seed: int = 0
    prepare: Callable[[Any], Any] = lambda batch: batch
    accumulate_steps: int = 1
    log_every_steps: int = 10
    max_bad_fraction: float = 0.01
    network: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    references: Mapping[str, float] = dataclasses.field(default_factory=dict)
    logged: Mapping[str, Schedule] = dataclasses.field(default_factory=dict)


class Weights(NamedTuple):
    """Weights at one step, as host arrays."""

    params: PyTree
    running: PyTree  # running statistics
    step: int


class Trained(NamedTuple):
    """What a training ends with."""

    directory: Location  # of checkpoints, metrics.jsonl and tensorboard
    best: Weights
    last: Weights


def place(workdir: Location, protocol: str, name: str, description: Mapping[str, Any]) -> Location:
    """WORKDIR/eval/PROTOCOL/NAME-DIGEST, where the same training finds its checkpoints again and no other one does."""
    digest = hashlib.sha256(json.dumps(description, sort_keys=True, default=str).encode()).hexdigest()[:10]
    return workdir / "eval" / protocol / f"{name}-{digest}"


def check_batch(batch_size: int, accumulate_steps: int) -> None:
    """Raise EvalError where a batch cannot be cut into micro-batches that all devices share."""
    parts = accumulate_steps * jax.device_count()
    if batch_size % parts:
        near = max(1, batch_size // parts) * parts
        raise EvalError(
            f"batch_size: found {batch_size}, expected a multiple of {parts} = accumulate_steps {accumulate_steps} x "
            f"{jax.device_count()} devices; nearest: {near}"
        )


def train(training: Training, directory: Location) -> Trained:
    """Train to the end, going on from the newest checkpoint in `directory`; a finished training is only read.

    Raises EvalError where the checkpoints there are of another training; Stopped, WorkdirError and what else `train.fit.fit` raises.
    """
    with contextlib.ExitStack() as stack:
        with distributed.together():
            if jax.process_index() == 0:
                stack.enter_context(locked(directory))
                _check_same(training.description, directory)
        checkpoints = stack.enter_context(
            Checkpoints(directory / "checkpoints", every_steps=training.every_steps, keep=1, best=Best(training.best))
        )
        progress = stack.enter_context(
            Progress(
                str(directory),
                total_steps=training.total_steps,
                steps_per_epoch=training.steps_per_epoch,
                references=dict(training.references),
            )
        )
        return _train(training, directory, checkpoints, progress)


def _check_same(description: Mapping[str, Any], directory: Location) -> None:
    """Raise EvalError, with the keys that differ, where the newest checkpoint in a directory was saved by another training."""
    try:
        saved = flatten(read_config(directory))
    except CheckpointError:
        return  # there is none, or a damaged one, which `fit` sets aside
    expected = flatten(json.loads(json.dumps(description, default=str)))
    lines = [
        f"{key}: found {expected.get(key)!r}, expected {saved.get(key)!r}, with which the checkpoints in {directory} were made"
        for key in sorted({*saved, *expected})
        if saved.get(key) != expected.get(key)
    ]
    if lines:
        raise EvalError("\n".join(lines))


def _train(training: Training, directory: Location, checkpoints: Checkpoints, progress: Progress) -> Trained:
    mesh = sharding.make_mesh()
    everywhere, rows = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    start = training.init()
    shapes = jax.eval_shape(lambda: _state(training, *start))
    abstract_state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), shapes)
    update = make_update(
        loss=training.loss,
        optimizer=training.optimizer,
        accumulate_steps=training.accumulate_steps,
        seed=training.seed,
        logged=training.logged,
    )

    def evaluate(state: State, step: int) -> Iterable[tuple[str, float]]:
        return training.evaluate(to_host(state.params), to_host(state.batch_stats))

    last = fit(
        init=lambda: jax.tree.map(lambda x: jax.make_array_from_process_local_data(everywhere, np.asarray(x)), _state(training, *start)),
        abstract_state=abstract_state,
        compile_step=lambda: jax.jit(update, in_shardings=(everywhere, rows), out_shardings=(everywhere, everywhere), donate_argnums=0),
        batches=training.batches,
        put=lambda batch: training.prepare(sharding.to_global(batch, mesh)),
        total_steps=training.total_steps,
        work=lambda: Work(training.batch_size, devices=mesh.size),
        checkpoints=checkpoints,
        config=training.description,
        identity={"kind": training.kind, "network": training.network},
        progress=progress,
        log_every_steps=training.log_every_steps,
        evaluations=[Periodic(training.kind, training.every_steps, evaluate)],
        replaced=training.replaced,
        limits=Limits(bad_image_share=training.max_bad_fraction),
    )
    checkpoints.wait()
    best = checkpoints.scores.best_step()
    step = best[0] if best else training.total_steps
    state = last if step == training.total_steps else checkpoints.restore(abstract_state, step)
    return Trained(directory, _weights(state, step), _weights(last, training.total_steps))


def _state(training: Training, params: PyTree, running: PyTree) -> State:
    """The state of step 0."""
    return State(jnp.int32(0), params, running, training.optimizer.init(params), jnp.int32(0), {})


def _weights(state: State, step: int) -> Weights:
    return Weights(to_host(state.params), to_host(state.batch_stats), step)
