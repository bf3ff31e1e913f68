"""One driver for everything that is trained: restore, iterate, log, evaluate, save, stop on a signal.

It knows a step function, a state and batches; no method, no evaluation, no config. Pre-training and trained evaluations
use the same one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn, TypeAlias

import jax

from sere_jax.train import checkpoint, peers
from sere_jax.train.checkpoint_manager import Checkpoints
from sere_jax.train.evaluations import Evaluations, Periodic
from sere_jax.train.meter import Limits, Meter, Metrics, OnBad, Reporter, Work
from sere_jax.train.prefetch import Feed
from sere_jax.train.signals import Signals, listening
from sere_jax.train.tracing import TracedSteps, Tracer

PyTree = Any
Batch = Any
TrainStep: TypeAlias = Callable[[Any, Batch], tuple[Any, Metrics]]


class Stopped(Exception):
    """A signal ended the run early, after its state was saved (where there are checkpoints). No failure: exit with 0."""


def fit(
    *,
    init: Callable[[], PyTree],
    abstract_state: PyTree,
    compile_step: Callable[[], TrainStep],
    batches: Callable[[int], Iterator[Batch]],
    put: Callable[[Batch], Batch],
    total_steps: int,
    work: Callable[[], Work],
    checkpoints: Checkpoints | None,
    config: Mapping[str, Any],
    progress: Reporter,
    identity: Mapping[str, Any] | None = None,
    log_every_steps: int = 10,
    evaluations: Sequence[Periodic] = (),
    replaced: Callable[[Batch], jax.Array] | None = None,
    limits: Limits | None = None,
    on_bad: OnBad = None,
    signals: Signals | None = None,
    traced: TracedSteps | None = None,
) -> PyTree:
    """Train from the newest checkpoint, or from the start, to `total_steps`; return the final state, which is saved.

    Every `log_every_steps` it logs each metric's mean over the steps since the last log; bad steps are left out. `bad_steps` counts
    all since the run began, `data/replaced` the unreadable images since this start. Speeds (`meter.Work`), `speed/seconds_per_step`
    with its percentiles and `speed/data_wait` are of the same steps. `speed/data_wait` is the share of time in which the
    device waited for a batch, `speed/goodput` that of all time since the first start which went into steps. Compilation,
    evaluations and saving are not in these times, but in the whole that goodput is a share of.

    Evaluations of the restored step that a signal cut short are done first. A run that is finished compiles nothing.

    Args:
      init: makes the state of step 0, with the weights that the run starts from; called only when there is no checkpoint.
      abstract_state: `jax.ShapeDtypeStruct`s with shardings, to restore into.
      compile_step: makes the train step (state, device batch) -> (state, scalar metrics), which may donate the state.
        `metrics['bad_step']` is 1 where it left the parameters alone because something was not finite. Called once, after
        the state is restored, and only where there are steps to take.
      batches: step -> the host batches from that step on (the batch of step `start + 1` comes first). Taken in a thread, the
        first while the step is compiled.
      put: host batch -> device batch, one ahead of the step.
      work: what a step computes; called after `compile_step`.
      checkpoints: where to resume from and save to; None = nowhere. The caller closes it.
      config, identity: JSON-able, saved with the state.
      replaced: device batch -> a boolean for each of its images, True where it stands in for an unreadable one.
      limits: how many bad steps and images are borne; None = the defaults.
      on_bad: is told of each step that was skipped, soon after it.
      signals: the program's, which listen since its start; None = listen from here to the end.
      traced: steps that JAX's profiler records.

    Raises:
      Stopped: SIGTERM or SIGINT came; the step was finished and saved. With several processes, all at the same step.
      TooManyBadSteps, TooManyBadImages, DataEnded, UnknownScore, CheckpointError: as they say; the newest checkpoint
        stays as it is.
    """
    state, start = _restore(checkpoints, abstract_state, init, evaluations, progress)
    evaluating = Evaluations(evaluations, total_steps, checkpoints.scores if checkpoints else None, progress)
    _make_up(evaluating, state, signals, progress, _End(start, total_steps, checkpoints))
    if start >= total_steps:
        if checkpoints and checkpoints.save(start, state, config, force=True, identity=identity):
            checkpoints.wait()  # a run of no steps: what an evaluation of the random initialisation reads
        return _untrained(state, start, total_steps, progress)
    with contextlib.ExitStack() as stack:
        feed = stack.enter_context(Feed(batches(start), put, total_steps - start))  # reads and decodes while the step is compiled
        train_step, signals = peers.met(compile_step()), stack.enter_context(listening(signals))
        meter = Meter(start, work(), progress, limits or Limits(), int(getattr(state, "bad_steps", 0)), on_bad)
        saver = _Saver(checkpoints, {"config": config, "identity": identity}, progress, meter)
        tracer = stack.enter_context(Tracer(traced, start, meter, progress))
        stack.enter_context(meter.watchdog)
        if signals.begin():
            saver.stop(start, total_steps, state, signals)
        for step in range(start + 1, total_steps + 1):
            if (batch := feed.take(meter, signals)) is None:
                saver.stop(step - 1, total_steps, state, signals)
            with tracer.step(step):
                state, metrics = train_step(state, batch)
            meter.add(step, metrics, replaced(batch) if replaced else None, due=step % log_every_steps == 0 or step == total_steps)
            if signals.reached() or _evaluate(evaluating, meter, state, step, signals):
                saver.stop(step, total_steps, state, signals)
            saver.save(step, state, last=step == total_steps, best=evaluating.is_best(step))
    return state


def _evaluate(evaluating: Evaluations, meter: Meter, state: PyTree, step: int, signals: Signals) -> bool:
    """Do the evaluations that are due after a step; whether a signal cut them short."""
    due = evaluating.due(step)
    if not due:
        return False
    meter.wait(keep_last=True)
    with meter.paused():
        return evaluating.run(due, state, step, signals, meter.emit)


def _restore(
    checkpoints: Checkpoints | None, abstract_state: PyTree, init: Callable[[], PyTree], evaluations: Sequence[Periodic], progress: Reporter
) -> tuple[PyTree, int]:
    """The state to go on from, and its step. A checkpoint of step 0 counts too: it may hold weights that a run started from."""
    newest = None
    if checkpoints and checkpoints.newest() is not None:
        with progress.busy("restoring"):
            newest = checkpoints.restore_newest(abstract_state)
    start = newest.step if newest else 0
    progress.start(start)
    if checkpoints:
        not_compared = checkpoints.scores.start(start, {evaluation.name: evaluation.measured for evaluation in evaluations})
        checkpoints.goodput.start(start)
        for note in (*checkpoints.notes, *not_compared):
            progress.note(note)
    if newest:
        return newest.state, start
    with progress.busy("initialising"):
        return init(), 0


def _untrained(state: PyTree, start: int, total_steps: int, progress: Reporter) -> PyTree:
    progress.note(f"nothing to train: the checkpoint is of step {start}, the run ends at {total_steps}")
    return state


class _End(NamedTuple):
    """Where a run stops early."""

    step: int
    total_steps: int
    checkpoints: Checkpoints | None

    def stopped(self, signals: Signals) -> Stopped:
        where = f"its state is saved in {self.checkpoints.directory / str(self.step)}" if self.checkpoints else "nothing was saved"
        advice = "; the same command goes on from there" if self.checkpoints else ""
        return Stopped(f"stopped by {signals.name} after step {self.step} of {self.total_steps}; {where}{advice}")


def _make_up(evaluating: Evaluations, state: PyTree, signals: Signals | None, progress: Reporter, end: _End) -> None:
    """Do the evaluations that the restored step still lacks. A signal cuts them short again, and the next start does them."""
    missed = evaluating.missed(end.step)
    if not missed:
        return
    with listening(signals) as heard:
        if evaluating.run(missed, state, end.step, heard, progress.write):
            raise end.stopped(heard)
        heard.join(jax.process_count(), interruptible=signals is not None)  # a compilation may be broken off, as before


class _Saver:
    """Saves by cadence, at the end and on a signal. Everything known of a step is reported before its checkpoint exists."""

    def __init__(self, checkpoints: Checkpoints | None, meta: Mapping[str, Any], progress: Reporter, meter: Meter) -> None:
        self._checkpoints, self._meta, self._progress, self._meter = checkpoints, meta, progress, meter
        meter.goodput = checkpoints.goodput if checkpoints else None
        peers.resumes(self.where)

    def where(self) -> str:
        """How far the run is and where it would go on, for the report of a lost process."""
        steps = checkpoint.steps_if_readable(self._checkpoints.directory) if self._checkpoints else []
        return f"this process was at step {self._meter.step}; start all again, and the run goes on from step {max(steps, default=0)}"

    def save(self, step: int, state: PyTree, *, last: bool, best: bool = False, why: str = "") -> None:
        if self._checkpoints is None or not (last or best or self._checkpoints.should_save(step)):
            if last:
                self._meter.wait()
            return
        self._meter.wait()
        self._progress.flush()
        with self._meter.paused(), self._progress.busy("saving") if last else contextlib.nullcontext():
            self._checkpoints.goodput.saved(step, self._meter.seconds_in_steps(), why)
            self._checkpoints.save(step, state, force=True, **self._meta)
            if last:
                self._checkpoints.wait()

    def stop(self, step: int, total_steps: int, state: PyTree, signals: Signals) -> NoReturn:
        """Save and raise `Stopped`."""
        self.save(step, state, last=True, why=signals.name)
        raise _End(step, total_steps, self._checkpoints).stopped(signals)
