"""What a campaign reports, a row of the table in docs/reliability.md, and the limits on what one trial may cost."""

from __future__ import annotations

import collections
import contextlib
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SECONDS = 2.0  # of the processor, for one decode or one refusal; ten times as many on the clock of a busy machine
MEGABYTES = 500
_SAY_EVERY = 20.0  # seconds


class Row(NamedTuple):
    """One campaign: how many trials of what, how they ended, and every trial that did not end as it should."""

    what: str
    trials: int
    ended: str
    failures: list[str]


class Trials:
    """The trials of one campaign. Iterating counts them up, until all have ended or the time is over, and says how far it is.

    `failures` holds a text for everything that did not end as it should.
    """

    def __init__(self, name: str, count: int, minutes: float = math.inf) -> None:
        self.count, self.failures = count, list[str]()
        self._name, self._words, self._began = name, list[str](), time.monotonic()
        self._latest, self._said = self._began + 60 * minutes, self._began

    def __iter__(self) -> Iterator[int]:
        while self.more():
            yield len(self._words)

    def more(self) -> bool:
        """Whether another trial is to begin."""
        return len(self._words) < self.count and time.monotonic() < self._latest

    def ended(self, words: str) -> None:
        """Count a trial by how it ended."""
        self._words.append(words)
        now, done = time.monotonic(), len(self._words)
        if now > self._said + _SAY_EVERY:
            self._said, left = now, min((now - self._began) / done * (self.count - done), self._latest - now)
            text = f"{self._name}: {done:,} of {self.count:,}, {len(self.failures)} failures, about {left / 60:.0f} minutes left"
            print(text, file=sys.stderr, flush=True)

    def failed(self, text: str) -> None:
        """Count a trial that did not end as it should."""
        self.failures.append(text)
        self.ended("failed")

    def share(self, words: str) -> float:
        """The share of the trials that ended in these words."""
        return self._words.count(words) / max(1, len(self._words))

    def row(self, what: str) -> Row:
        """The campaign's row of the table."""
        counts = collections.Counter(self._words)
        ended = ", ".join(f"{count:,} {word}" for word, count in counts.most_common())
        return Row(what, len(self._words), ended, self.failures)


def table(rows: list[Row]) -> str:
    """The rows as Markdown, and below it the failures."""
    lines = ["| Trial | Trials | How they ended | Failures |", "|---|---|---|---|"]
    lines += [f"| {one.what} | {one.trials:,} | {one.ended} | {len(one.failures)} |" for one in rows]
    return "\n".join([*lines, *(f"\n{one.what}: {text}" for one in rows for text in one.failures)])


class Costs:
    """The most that a trial of a campaign took, in seconds of the processor and in megabytes."""

    def __init__(self) -> None:
        self.seconds, self.megabytes = 0.0, 0.0

    @contextlib.contextmanager
    def of(self, what: str, failures: list[str]) -> Iterator[None]:
        """Measure the block; a failure where it takes more than it may."""
        Path("/proc/self/clear_refs").write_text("5")  # the peak of the memory begins anew
        before, clock, processor = memory("VmRSS"), time.monotonic(), time.process_time()
        try:
            yield
        finally:
            seconds, waited = time.process_time() - processor, time.monotonic() - clock
            megabytes = memory("VmHWM") - before
            self.seconds, self.megabytes = max(self.seconds, seconds), max(self.megabytes, megabytes)
            if seconds > SECONDS or waited > 10 * SECONDS:
                failures.append(f"{what}: took {seconds:.1f} s of the processor, {waited:.1f} s in all")
            if megabytes > MEGABYTES:
                failures.append(f"{what}: took {megabytes:,.0f} MB")

    def __str__(self) -> str:
        return f"at most {self.seconds:.2f} s and {self.megabytes:,.0f} MB each"


def memory(name: str, pid: int | str = "self") -> float:
    """Megabytes of a process by a name of /proc/PID/status: VmRSS is what it has, VmHWM the most that it had."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise KeyError(name)
