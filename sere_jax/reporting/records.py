"""metrics.jsonl: one line per logged step, and no step twice, however often a run was killed and resumed.

On a disk it is one file. A bucket appends nothing: there the lines of each checkpoint are an object of their own beside `metrics.jsonl`,
`metrics-STEP.jsonl`, and the next start or the end of the run joins them. `read` reads both.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from etils import epath

from sere_jax import buckets
from sere_jax.buckets import Location, path_of
from sere_jax.writing import replacing

_NAME = "metrics.jsonl"
_PART = re.compile(r"metrics-\d{12}\.jsonl")
_PUT_EVERY_SECONDS = 60.0  # the last part, so that a run can be watched between its checkpoints


def read(directory: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of a run, by step, from its workdir on a disk or in a bucket; [] where it has none.

    Example:
      >>> Records("run", after=0).write(10, {"loss": 9.1})
      >>> [(record["step"], record["loss"]) for record in read("run")]
      [(10, 9.1)]
    """
    return [json.loads(line) for line in _lines(path_of(directory))]


class Records:
    """Lines `{"step": 10, "time": 1700000000.0, "loss": 9.1, ...}` in DIRECTORY/metrics.jsonl.

    Lines of steps after `after`, and an incomplete last line, are dropped at the start, because those steps are repeated.
    """

    def __init__(self, directory: str | os.PathLike[str], *, after: int) -> None:
        path = Path(directory) / _NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        earlier = [line for line in _lines(path.parent) if _step(line) <= after]
        with replacing(path) as temporary:
            temporary.write_text("".join(line + "\n" for line in earlier))
        for part in _parts(path.parent):  # of a workdir that was copied out of a bucket
            part.unlink()
        self._file = path.open("a")
        # An evaluation that a stop cut short is reported after the restart: it joins the line of its step.
        self._last: dict[str, Any] = json.loads(earlier[-1]) if earlier else {}
        self._last_length = len(f"{earlier[-1]}\n".encode()) if earlier else 0

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append a line and flush it. JSON has no NaN, so non-finite values become null."""
        line = _line(step, values, self._last)
        if self._last.get("step") == step:
            self._file.truncate(self._file.seek(0, os.SEEK_END) - self._last_length)
        self._last = {}
        self._file.write(line + "\n")
        self._file.flush()

    def flush(self) -> None:
        """Nothing: each line is written at once."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class BucketRecords:
    """The same lines in a bucket: `metrics.jsonl` as it was at this start, and parts of what came since."""

    def __init__(self, directory: epath.Path, *, after: int) -> None:
        self._directory = directory
        earlier = [line for line in _lines(directory) if _step(line) <= after]
        _join(directory, earlier)
        self._last: dict[str, Any] = json.loads(earlier[-1]) if earlier else {}
        self._part: list[str] = []
        self._changed, self._put_at = False, time.monotonic()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add a line to the last part. It is put into the bucket at most once a minute, and by `flush`."""
        line = _line(step, values, self._last)
        if self._part and _step(self._part[-1]) == step:
            self._part.pop()
        self._part.append(line)
        self._last, self._changed = json.loads(line), True
        if time.monotonic() - self._put_at > _PUT_EVERY_SECONDS:
            self._put()

    def flush(self) -> None:
        """Put the last part into the bucket and begin a new one. Where that fails, the next call tries again."""
        if self._changed:
            self._put()
            self._part = []

    def close(self) -> None:
        """Join all parts."""
        self.flush()
        _join(self._directory, _lines(self._directory))

    def _put(self) -> None:
        self._put_at = time.monotonic()
        name = f"metrics-{int(_step(self._part[0])):012d}.jsonl"
        buckets.put_bytes(self._directory / name, "".join(line + "\n" for line in self._part).encode())
        self._changed = False


def _lines(directory: Location) -> list[str]:
    """The lines of the file and of its parts, one a step, in the order of the steps; of two with a step the later part's."""
    newest: dict[float, str] = {}
    for path in [directory / _NAME, *_parts(directory)]:
        try:
            with buckets.os_errors(path):
                text = path.read_text()
        except FileNotFoundError:
            continue
        newest |= {_step(line): line for line in text.splitlines()}
    newest.pop(math.inf, None)
    return [newest[step] for step in sorted(newest)]


def _parts(directory: Location) -> list[Location]:
    with buckets.os_errors(directory):
        return sorted(path for path in directory.iterdir() if _PART.fullmatch(path.name)) if directory.is_dir() else []


def _join(directory: epath.Path, lines: Iterable[str]) -> None:
    """Make `metrics.jsonl` of these lines. A stop before the parts are deleted does no harm: `_lines` takes one line a step."""
    parts = _parts(directory)
    buckets.put_bytes(directory / _NAME, "".join(line + "\n" for line in lines).encode())
    for part in parts:
        with buckets.os_errors(part):
            part.unlink(missing_ok=True)


def _line(step: int, values: Mapping[str, float], last: Mapping[str, Any]) -> str:
    """A line of the file. Values join those of `last` where that is of the same step."""
    plain = {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
    position = {"step": step, "time": round(time.time(), 3)}
    if last.get("step") == step:
        plain = {**last, **plain}
    return json.dumps({**position, **plain, **position})  # first in the line, and not overwritten by a metric of the same name


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
