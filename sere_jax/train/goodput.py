"""Goodput: the share of a run's time that went into steps it keeps, since its first start, and what each stop cost.

The account lies beside the checkpoints, in DIRECTORY/goodput.json. Steps that were lost with a killed process and trained again count once.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from etils import epath

from sere_jax import buckets
from sere_jax.writing import replacing

_NAME = "goodput.json"
_SEEN_EVERY_SECONDS = 30.0  # between two notes that the run is alive; a kill is dated by the last one
_KEPT_STEPS = 50  # checkpoints whose seconds are remembered: a restart may go back behind the newest


class Stop(NamedTuple):
    """A stop of the run: where and why, and the seconds it cost."""

    step: int  # the last step that was seen
    why: str
    down: float  # from the last sign of life until the program had restored its state
    ready: float  # from there to the end of the first step: compiling, first batch
    again: float  # in steps that had to be trained again

    def line(self) -> str:
        """The stop in a sentence."""
        seconds = self.down + self.ready + self.again
        return (
            f"stop         {self.why} at step {self.step:,}: cost {seconds:.0f} s (down {self.down:.0f}, "
            f"first step after {self.ready:.0f}, steps trained again {self.again:.0f})"
        )


class Goodput:
    """The account of one run. Process 0 keeps it; on the others all methods do nothing.

    Args:
      directory: where the account lies.
      clock: seconds since the epoch.
    """

    def __init__(self, directory: epath.Path, clock: Callable[[], float] = time.time) -> None:
        self._path, self._clock = directory / _NAME, clock
        self._began = self._first_start = self._seen_at = clock()
        self._step, self._before, self._seconds = 0, 0.0, 0.0  # steps, their seconds before this start and since
        self._kept: dict[int, float] = {}  # seconds in steps, by checkpoint
        self._stops: list[Stop] = []
        self._open: Stop | None = None  # the stop before this start, until its first step is done

    def start(self, step: int) -> None:
        """Read the account and go on with it: the run continues after `step`."""
        if jax.process_index() != 0:
            return
        record = self._read()
        self._began = self._clock()
        self._step = step
        if not record:
            self._first_start = self._began
            return
        self._first_start = record["first_start"]
        self._stops = [Stop(**stop) for stop in record["stops"]]
        self._kept = {int(saved): seconds for saved, seconds in record["kept"].items() if int(saved) <= step}
        self._before = self._kept[max(self._kept)] if self._kept else 0.0
        last, lost = record["seen_step"], max(0, record["seen_step"] - step)
        again = lost * record["seconds"] / last if last else 0.0
        self._open = Stop(last, record["why"] or "killed", max(0.0, self._began - record["seen_at"]), 0.0, again)

    def first_step(self) -> str:
        """Note that the first step since this start is done. A sentence on what the stop before cost, "" where there was none."""
        stop, self._open = self._open, None
        if stop is None:
            return ""
        self._stops.append(stop._replace(ready=self._clock() - self._began))
        return self._stops[-1].line()

    def alive(self, step: int, seconds: float) -> None:
        """Note the last step that is done, and the seconds in steps since this start. Written now and then."""
        self._step, self._seconds = step, seconds
        if self._clock() - self._seen_at > _SEEN_EVERY_SECONDS:
            self._write("")

    def saved(self, step: int, seconds: float, why: str = "") -> None:
        """Note that a checkpoint of `step` follows; `why` names the signal that ends the run after it."""
        self._step, self._seconds = step, seconds
        self._kept = dict(sorted({**self._kept, step: self._before + seconds}.items())[-_KEPT_STEPS:])
        self._write(why)

    def share(self) -> float:
        """The seconds in steps by all seconds since the first start."""
        return min(1.0, (self._before + self._seconds) / max(self._clock() - self._first_start, 1e-9))

    def summary(self) -> str:
        """The account in a sentence."""
        hours = (self._clock() - self._first_start) / 3600
        lost = sum(stop.down + stop.ready + stop.again for stop in self._stops)
        stops = f"{len(self._stops)} stop{'s' if len(self._stops) != 1 else ''} cost {lost:.0f} s"
        return f"goodput      {100 * self.share():.1f} % of {hours:.2f} hours since the first start were steps; {stops}"

    def _read(self) -> dict[str, Any]:
        """The record; {} where there is none, or a damaged one: then the account begins anew."""
        try:
            with buckets.os_errors(self._path):
                record = json.loads(self._path.read_text())
            return record if isinstance(record, dict) and record.keys() == _FIELDS else {}
        except (OSError, ValueError):
            return {}

    def _write(self, why: str) -> None:
        if jax.process_index() != 0:
            return
        self._seen_at = self._clock()
        values = (self._first_start, self._seen_at, self._step, self._before + self._seconds, self._kept, why)
        record = dict(zip(_ORDER, values, strict=True)) | {"stops": [stop._asdict() for stop in self._stops]}
        with contextlib.suppress(OSError):  # the checkpoint beside it says so more clearly
            # The first checkpoint makes the directory, after this. A workdir that vanished is not made again.
            if buckets.is_address(self._path) or self._path.parent.parent.is_dir():
                with replacing(self._path) as temporary:
                    temporary.write_text(json.dumps(record) + "\n")


_ORDER = ("first_start", "seen_at", "seen_step", "seconds", "kept", "why")
_FIELDS = {*_ORDER, "stops"}
