"""One driver for everything that is trained: restore, iterate, log, evaluate, save, stop on a signal.

It knows a step function, a state and batches; no method, no evaluation, no config. Pre-training and trained evaluations
use the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import jax

from sere_jax.train.checkpoint import Checkpoints
from sere_jax.train.meter import Meter, Metrics, Reporter
from sere_jax.train.prefetch import Feed
from sere_jax.train.signals import Interrupted, Signals, listening

PyTree = Any
Batch = Any


class Stopped(Exception):
    """A signal ended the run early, after its state was saved (where there are checkpoints). No failure: exit with 0."""


class Periodic(NamedTuple):
    """An evaluation in the loop: `run(state, step)` yields (name, value), every so many steps and after the last. 0 = never."""

    every_steps: int
    run: Callable[[Any, int], Iterable[tuple[str, float]]]


def fit(
    *,
    init: Callable[[], PyTree],
    abstract_state: PyTree,
    train_step: Callable[[Any, Batch], tuple[Any, Metrics]],
    batches: Callable[[int], Iterator[Batch]],
    put: Callable[[Batch], Batch],
    total_steps: int,
    images_per_step: int,
    checkpoints: Checkpoints | None,
    config: Mapping[str, Any],
    progress: Reporter,
    log_every_steps: int = 10,
    evaluations: Sequence[Periodic] = (),
    max_bad_steps: int = 10,
    replaced: Callable[[Batch], jax.Array] | None = None,
    max_bad_fraction: float = 0.01,
    signals: Signals | None = None,
) -> PyTree:
    """Train from the newest checkpoint, or from the start, to `total_steps`; the final state, which is saved.

    What is logged every `log_every_steps`: each metric's mean over the steps since the last log (bad steps left out),
    `bad_steps` (all since the run began), `data/replaced` (unreadable images since this start), and of the same steps
    `speed/images_per_second`, `speed/seconds_per_step` and `speed/data_wait`, the share of time in which the device had
    nothing to do for want of a batch. Compilation, evaluations and saving are not in these times.

    Args:
      init: makes the state of step 0; called only when there is no checkpoint.
      abstract_state: `jax.ShapeDtypeStruct`s with shardings, to restore into.
      train_step: (state, device batch) -> (state, scalar metrics); it may donate the state. `metrics['bad_step']` is 1
        where it left the parameters alone because something was not finite.
      batches: step -> the host batches from that step on (the batch of step `start + 1` comes first). Taken in a thread.
      put: host batch -> device batch, one ahead of the step.
      images_per_step: of all processes together.
      checkpoints: where to resume from and save to; None = nowhere.
      config: JSON-able, saved with the state.
      max_bad_steps: that many bad steps are borne, over the whole run.
      replaced: device batch -> a boolean for each of its images, True where it stands in for an unreadable one.
      max_bad_fraction: the largest share of them that is borne, judged over at least 1000 images.
      signals: the program's, which listen since its start; None = listen from here to the end.

    Raises:
      Stopped: SIGTERM or SIGINT came; the step was finished and saved. With several processes, all at the same step.
      TooManyBadSteps, TooManyBadImages, DataEnded: as they say; the newest checkpoint stays as it is.
    """
    start = (checkpoints.latest_step() if checkpoints else None) or 0
    progress.start(start)
    with progress.busy(f"restoring step {start}" if start else "initialising"):
        state = checkpoints.restore(abstract_state, start) if checkpoints and start else init()
    if start >= total_steps:
        if not start and checkpoints:  # a run of no steps: what an evaluation of the random initialisation reads
            checkpoints.save(0, state, config, force=True)
            checkpoints.wait()
        progress.note(f"nothing to train: the checkpoint is of step {start}, the run ends at {total_steps}")
        return state
    meter = Meter(start, images_per_step, progress, max_bad_steps, max_bad_fraction, int(getattr(state, "bad_steps", 0)))
    saver = _Saver(checkpoints, config, progress, meter)
    with listening(signals) as signals, Feed(batches(start), put, total_steps - start) as feed:
        if signals.begin():
            saver.stop(start, total_steps, state, signals)
        for step in range(start + 1, total_steps + 1):
            batch = feed.take(meter, signals)
            if batch is None:
                saver.stop(step - 1, total_steps, state, signals)
            state, metrics = train_step(state, batch)
            meter.add(step, metrics, replaced(batch) if replaced else None, due=step % log_every_steps == 0 or step == total_steps)
            stopping = signals.reached()
            if not stopping:
                stopping = _evaluate(state, step, total_steps, evaluations, meter, signals, progress)
            if stopping:
                saver.stop(step, total_steps, state, signals)
            saver.save(step, state, last=step == total_steps)
    return state


def _evaluate(
    state: PyTree, step: int, total_steps: int, evaluations: Sequence[Periodic], meter: Meter, signals: Signals, progress: Reporter
) -> bool:
    """Run the evaluations that are due; True when a signal cut them short. Their values go out with the step's metrics."""
    due = [e for e in evaluations if e.every_steps and (step % e.every_steps == 0 or step == total_steps)]
    if not due:
        return False
    meter.wait(keep_last=True)
    values: dict[str, float] = {}
    try:
        with meter.paused(), progress.busy("evaluating"), signals.interrupting():
            for evaluation in due:
                values.update((name, float(value)) for name, value in evaluation.run(state, step))
    except Interrupted:
        return True
    finally:
        meter.emit(step, values)
    return False


class _Saver:
    """Saves by cadence, at the end and on a signal. Everything known of a step is reported before its checkpoint exists."""

    def __init__(self, checkpoints: Checkpoints | None, config: Mapping[str, Any], progress: Reporter, meter: Meter) -> None:
        self._checkpoints, self._config, self._progress, self._meter = checkpoints, config, progress, meter

    def save(self, step: int, state: PyTree, *, last: bool) -> None:
        if self._checkpoints is None or not (last or self._checkpoints.should_save(step)):
            if last:
                self._meter.wait()
            return
        self._meter.wait()
        with self._meter.paused():
            self._checkpoints.save(step, state, self._config, force=True)
            if last:
                with self._progress.busy("saving"):
                    self._checkpoints.wait()

    def stop(self, step: int, total_steps: int, state: PyTree, signals: Signals) -> NoReturn:
        """Save and raise `Stopped`."""
        self.save(step, state, last=True)
        where = f"its state is saved in {self._checkpoints.directory / str(step)}" if self._checkpoints else "nothing was saved"
        advice = "; the same command goes on from there" if self._checkpoints else ""
        raise Stopped(f"stopped by {signals.name} after step {step} of {total_steps}; {where}{advice}")
