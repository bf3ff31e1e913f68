"""Evaluations while a run trains: by their cadence, and those that a signal cut short after the restart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from sere_jax.train.meter import Reporter
from sere_jax.train.scores import Scores
from sere_jax.train.signals import Interrupted, Signals

PyTree = Any


class Periodic(NamedTuple):
    """An evaluation in the loop: `run(state, step)` yields (score, value), every so many steps and after the last. 0 = never.

    `name` is its own among the evaluations of a run; it stands in the record of what was done. `measured` is a digest of the settings
    and images: after a restart, scores with another digest are not compared, and the evaluation of the restored step is done again.
    """

    name: str
    every_steps: int
    run: Callable[[Any, int], Iterable[tuple[str, float]]]
    measured: str = ""


class UnknownScore(ValueError):
    """The score by which the best checkpoint is kept is none that the evaluations give."""


class Evaluations:
    """Runs what is due and records what was done, so that nothing is lost when a run stops in between."""

    def __init__(self, evaluations: Sequence[Periodic], total_steps: int, scores: Scores | None, progress: Reporter) -> None:
        self._evaluations, self._total_steps = evaluations, total_steps
        self._scores, self._progress = scores, progress

    def due(self, step: int) -> list[Periodic]:
        """The evaluations of this step."""
        return [e for e in self._evaluations if e.every_steps and step and (step % e.every_steps == 0 or step == self._total_steps)]

    def missed(self, step: int) -> list[Periodic]:
        """The evaluations of a restored step that were not finished when it was saved. All processes get the same ones."""
        due = self.due(step)
        if self._scores is None or not due:
            return []
        done = np.array([self._scores.done(step, evaluation.name) for evaluation in due])
        if jax.process_count() > 1:
            done = np.asarray(multihost_utils.broadcast_one_to_all(done))
        return [evaluation for evaluation, finished in zip(due, done, strict=True) if not finished]

    def run(
        self, which: Sequence[Periodic], state: PyTree, step: int, signals: Signals, emit: Callable[[int, Mapping[str, float]], None]
    ) -> bool:
        """Run some evaluations and hand their scores to `emit`; True when a signal cut them short.

        Raises UnknownScore where all were run and none gave the score by which the best checkpoint is kept.
        """
        finished: dict[str, dict[str, float]] = {}
        try:
            with self._progress.busy("evaluating"), signals.interrupting():
                for evaluation in which:
                    finished[evaluation.name] = {score: float(value) for score, value in evaluation.run(state, step)}
        except Interrupted:
            return True
        finally:
            values = {score: value for scores in finished.values() for score, value in scores.items()}
            emit(step, values)
            if self._scores is not None:
                for name, scores in finished.items():
                    self._scores.add(step, name, scores)
        if len(which) == len(self._evaluations):
            self._check_best(values)
        return False

    def is_best(self, step: int) -> bool:
        """Whether the scores of this step are the best so far. All processes answer alike."""
        if self._scores is None or self._scores.best is None or not self.due(step):
            return False
        best = self._scores.is_best(step)
        return bool(multihost_utils.broadcast_one_to_all(np.array(best))) if jax.process_count() > 1 else best

    def _check_best(self, values: Mapping[str, float]) -> None:
        best = self._scores.best if self._scores else None
        if best is not None and best.score not in values:
            raise UnknownScore(f"run.keep_best: found {best.score!r}, expected one of {', '.join(values) or 'the scores of an evaluation'}")
