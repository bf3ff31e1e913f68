"""metrics.jsonl: one line per logged step, and no step twice, however often a run was killed and resumed."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sere_jax.writing import replacing


class Records:
    """Lines `{"step": 10, "time": 1700000000.0, "loss": 9.1, ...}` in DIRECTORY/metrics.jsonl.

    Lines of steps after `after`, and an incomplete last line, are dropped at the start, because those steps are repeated.
    """

    def __init__(self, directory: str | os.PathLike[str], *, after: int) -> None:
        path = Path(directory) / "metrics.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines() if path.exists() else []
        earlier = [line for line in lines if _step(line) <= after]
        with replacing(path) as temporary:
            temporary.write_text("".join(line + "\n" for line in earlier))
        self._file = path.open("a")
        # An evaluation that a stop cut short is reported after the restart: it joins the line of its step.
        self._last: dict[str, Any] = json.loads(earlier[-1]) if earlier else {}
        self._last_length = len(f"{earlier[-1]}\n".encode()) if earlier else 0

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append a line and flush it. JSON has no NaN, so non-finite values become null."""
        plain = {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
        position = {"step": step, "time": round(time.time(), 3)}
        if self._last.get("step") == step:
            self._file.truncate(self._file.seek(0, os.SEEK_END) - self._last_length)
            plain = {**self._last, **plain}
        self._last = {}
        line = json.dumps({**position, **plain, **position})  # first in the line, and not overwritten by a metric of the same name
        self._file.write(line + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
