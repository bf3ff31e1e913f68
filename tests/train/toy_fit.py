"""`fit` with the toy training in this process, and a reporter that remembers."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sere_jax.train.checkpoint_manager import Checkpoints
from sere_jax.train.fit import fit
from sere_jax.train.scores import Best
from tests.train import toy_run


class Listener:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.started = -1
        self.written: list[tuple[int, dict[str, float]]] = []
        self.notes: list[str] = []
        self.flushed = 0
        self.advanced: list[int] = []

    def start(self, step: int) -> None:
        self.started = step

    def advance(self, step: int) -> None:
        self.advanced.append(step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.written.append((step, dict(values)))

    def flush(self) -> None:
        self.flushed = len(self.written)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def busy(self, what: str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


def run(
    directory: Path | None,
    total: int,
    listener: Listener | None = None,
    fsdp: int = 1,
    every: int = 4,
    feed: Any = None,
    best: Best | None = None,
    **given: Any,
) -> Any:
    arguments = {**toy_run.pieces(fsdp), "log_every_steps": 2, "progress": listener or Listener(), **given}
    with contextlib.nullcontext() if directory is None else Checkpoints(directory, every_steps=every, best=best) as checkpoints:
        return fit(batches=feed or toy_run.batches, total_steps=total, checkpoints=checkpoints, **arguments)
