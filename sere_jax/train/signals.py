"""SIGTERM and SIGINT as a request to finish the step, save and go."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils


class Interrupted(BaseException):
    """Thrown into an evaluation by a signal."""


class Signals:
    """SIGTERM and SIGINT as a request to stop after the step. A second SIGINT interrupts at once.

    With several processes JAX's own SIGTERM notice agrees on a step among all of them, so it must keep its handler;
    SIGINT is passed on to it.
    """

    def __init__(self) -> None:
        self.name = "SIGTERM"
        self._came = False
        self._interrupt = False
        self._several = jax.process_count() > 1
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            for number in (signal.SIGINT,) if self._several else (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self._came and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._came, self.name = True, signal.Signals(number).name
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)
        elif self._interrupt:
            self._interrupt = False
            raise Interrupted

    def waiting(self) -> bool:
        """A signal came, and this process may stop where it is (a single one: nobody else is in the middle of a step)."""
        return self._came and not self._several

    def reached(self, step: int) -> bool:
        """Stop after this step? With several processes to be called at every step; all answer True at the same one."""
        return multihost_utils.reached_preemption_sync_point(step) if self._several else self._came

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """Let a signal break off what runs inside. With several processes it has to wait: they would fall out of step."""
        if self.waiting():
            raise Interrupted
        self._interrupt = not self._several
        try:
            yield
        finally:
            self._interrupt = False
