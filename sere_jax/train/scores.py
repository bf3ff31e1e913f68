"""Which evaluations of a run were done at which step, and the scores they gave: DIRECTORY/evaluations.jsonl.

A checkpoint is written after the evaluations of its step, unless a signal breaks these off. The record tells a restarted run
which evaluations of its step are still to be done, and tells the checkpoints which step is the best. Scores of other settings or
images stay in the record, but are not compared with those of this start.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
from etils import epath
from orbax.checkpoint.checkpoint_managers import BestN

from sere_jax import buckets, distributed
from sere_jax.train import peers
from sere_jax.train.checkpoint import UnwritableCheckpoint, reading
from sere_jax.train.disk import cause
from sere_jax.writing import replacing


class Best(NamedTuple):
    """The score by which checkpoints are compared, such as `knn/k20/top1`, and whether `max` or `min` of it is best."""

    score: str
    mode: str = "max"


class Entry(NamedTuple):
    """What one evaluation gave at one step."""

    measured: str  # `Periodic.measured` of the start that evaluated
    scores: dict[str, float | None]  # None: not finite


class Scores:
    """The record of one run. Process 0 writes it; the others keep what they are told in memory.

    Args:
      directory: where the record lies, beside the checkpoints.
      best: the score that `value`, `is_best` and `best_step` are about; None = there is none.
    """

    def __init__(self, directory: epath.Path, best: Best | None = None) -> None:
        self.best = best
        self._path = directory / "evaluations.jsonl"
        self._done: dict[int, dict[str, Entry]] = {}
        self._measured: dict[str, str] = {}

    def start(self, step: int, measured: Mapping[str, str] = MappingProxyType({})) -> list[str]:
        """Read the record on process 0, for all; returns lines on scores that are no longer compared.

        Later steps in it are ignored, because they are trained again. `measured` has `Periodic.measured` of each evaluation by its name.

        Raises:
          CheckpointError: it cannot be read. On the other processes it is OtherProcessError.
        """
        with distributed.together(), reading(self._path):
            first = jax.process_index() == 0
            text = self._path.read_bytes().decode(errors="replace") if first and self._path.exists() else ""
        lines = distributed.text_of_first(text).splitlines()
        self._done, self._measured = {}, dict(measured)
        for at, name, entry in filter(None, map(_entry, lines)):
            if at <= step:
                self._done.setdefault(at, {})[name] = entry
        return [
            f"{name}: its settings or images have changed since step {at:,}; scores up to there are not compared"
            for name, at in self._old()
        ]

    def done(self, step: int, name: str) -> bool:
        """Whether that evaluation was finished at that step, with the settings and images of this start."""
        return name in self._comparable(step)

    def add(self, step: int, name: str, scores: Mapping[str, float]) -> None:
        """Note that an evaluation is finished. The whole record is replaced at once, so that a kill leaves the old or the new one."""
        finite = {key: float(value) if math.isfinite(value) else None for key, value in scores.items()}
        self._done.setdefault(step, {})[name] = Entry(self._measured.get(name, ""), finite)
        if jax.process_index() != 0:
            return
        record = [(at, one, entry) for at, names in sorted(self._done.items()) for one, entry in names.items()]
        lines = [json.dumps({"step": at, "name": one, **entry._asdict()}) + "\n" for at, one, entry in record]
        try:
            with buckets.os_errors(self._path):
                self._path.parent.mkdir(exist_ok=True)  # without its parents: a workdir that has vanished is not made again
            with replacing(self._path) as temporary:
                temporary.write_text("".join(lines))
        except OSError as error:
            raise peers.announced(UnwritableCheckpoint(f"{self._path} could not be written: {cause(error)}")) from error

    def value(self, step: int) -> float | None:
        """The score of a step by which it is compared; None where it has none of these settings and images, or one that is not finite."""
        assert self.best is not None
        scores = [scores[self.best.score] for scores in self._comparable(step).values() if self.best.score in scores]
        return scores[-1] if scores else None

    def is_best(self, step: int) -> bool:
        """Whether no earlier step has as good a score as this one."""
        value = self.value(step) if self.best else None
        if value is None:
            return False
        earlier = [self.value(at) for at in self._done if at < step]
        return all(old is None or self._better(value, old) for old in earlier)

    def best_step(self) -> tuple[int, float] | None:
        """The step with the best score, the first of equals, and the score."""
        steps = [step for step in sorted(self._done) if self.is_best(step)] if self.best else []
        value = self.value(steps[-1]) if steps else None
        return None if value is None else (steps[-1], value)

    def _comparable(self, step: int) -> dict[str, dict[str, float | None]]:
        """The scores of a step by the evaluation's name, as far as they measure what this start measures."""
        entries = self._done.get(step, {})
        return {name: entry.scores for name, entry in entries.items() if entry.measured == self._measured.get(name, "")}

    def _old(self) -> list[tuple[str, int]]:
        """The evaluations of this start whose newest scores measure something else, and their steps."""
        newest = {name: (at, entry) for at, names in sorted(self._done.items()) for name, entry in names.items()}
        return [(name, at) for name, (at, entry) in newest.items() if entry.measured != self._measured.get(name, entry.measured)]

    def _better(self, new: float, old: float) -> bool:
        assert self.best is not None
        return new > old if self.best.mode == "max" else new < old


class BestStep:
    """A preservation policy of Orbax for the step with the best score; steps without that score count for nothing."""

    def __init__(self, scores: Scores) -> None:
        self._scores = scores

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        best = self._scores.best
        assert best is not None
        first = 1 if best.mode == "min" else -1  # of steps with equal scores the first is the best
        values = {info.step: self._scores.value(info.step) for info in checkpoints}
        keys = {step: None if value is None else (value, first * step) for step, value in values.items()}
        scored = [dataclasses.replace(info, metrics=keys[info.step]) for info in checkpoints]
        policy = BestN(get_metric_fn=lambda key: key, reverse=best.mode == "min", n=1, keep_checkpoints_without_metrics=False)
        return policy.should_preserve(scored, context=context)


def _entry(line: str) -> tuple[int, str, Entry] | None:
    """A line of the record; None for one that was damaged or cut short: its evaluation is done again."""
    try:
        entry = json.loads(line)
        scores = {str(key): None if value is None else float(value) for key, value in entry["scores"].items()}
        return int(entry["step"]), str(entry["name"]), Entry(str(entry["measured"]), scores)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
