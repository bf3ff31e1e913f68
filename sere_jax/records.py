"""metrics.jsonl: one line a step, and no step twice however often a run was killed and resumed."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from typing import IO

from etils import epath

_REMOTE_EVERY_SECONDS = 60.0


class Records:
    """Lines `{"step": 10, "time": 1700000000.0, "loss": 9.1, ...}` in DIRECTORY/metrics.jsonl.

    Lines of steps beyond `after`, and one cut short by a kill, are dropped at the start: those steps are done again. On an
    object store, which cannot append, the file is written anew once a minute and at the end.
    """

    def __init__(self, directory: str | os.PathLike[str], *, after: int) -> None:
        self._path = epath.Path(directory) / "metrics.jsonl"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._lines = [line for line in self._read() if _step(line) <= after]
        self._remote = _is_remote(directory)
        self._file: IO[str] | None = None
        self._written = time.monotonic()
        self._rewrite()
        if not self._remote:
            self._lines = []
            self._file = self._path.open("a")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add a line. JSON knows no NaN: what is not finite becomes null."""
        plain = {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
        own = {"step": step, "time": round(time.time(), 3)}
        line = json.dumps({**own, **plain, **own})  # first in the line, and not to be overwritten by a metric of that name
        if self._file is not None:
            self._file.write(line + "\n")
            self._file.flush()
            return
        self._lines.append(line)
        if time.monotonic() - self._written > _REMOTE_EVERY_SECONDS:
            self._rewrite()

    def close(self) -> None:
        """Write what is not written yet."""
        if self._file is not None:
            self._file.close()
        elif self._remote:
            self._rewrite()

    def _read(self) -> list[str]:
        return self._path.read_text().splitlines() if self._path.exists() else []

    def _rewrite(self) -> None:
        text = "".join(line + "\n" for line in self._lines)
        if self._remote:
            self._path.write_text(text)
        else:
            beside = self._path.with_suffix(".jsonl.new")
            beside.write_text(text)
            beside.replace(self._path)
        self._written = time.monotonic()


def _is_remote(directory: str | os.PathLike[str]) -> bool:
    return "://" in os.fspath(directory)


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
