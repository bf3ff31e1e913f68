"""Notices that a step does not end: it prints what every thread of this process is doing, and later ends the process."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator

from sere_jax.train import peers

_LOOKS = 20  # looks at the clock within the limit
_ANNOUNCE_SECONDS = 2.0


class StuckStep(RuntimeError):
    """A step took far longer than a step may."""


class Watchdog:
    """Prints the Python stacks of all threads when a step takes longer than `seconds`, and ends the process after twice that time.

    Use it in a `with`, around the steps. A run that is stuck in a collective or on a dead file system would otherwise hold its
    machines until somebody looks.

    Args:
      seconds: without a sign from `step`; 0 = it never watches.
      leave: ends the process with an exit code, from any thread.
    """

    def __init__(self, seconds: float, leave: Callable[[int], None] = os._exit) -> None:
        self._seconds, self._leave = seconds, leave
        self._since, self._paused, self._step = time.monotonic(), 0, 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._since = time.monotonic()
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()

    def step(self, step: int) -> None:
        """Say that a step begins."""
        self._since, self._step = time.monotonic(), step

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Something other than a step takes its time: an evaluation, a save."""
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1
            self._since = time.monotonic()

    def _watch(self) -> None:
        reported = 0.0  # the beginning of the step whose stacks were printed
        while not self._end.wait(self._seconds / _LOOKS):
            since = self._since
            late = time.monotonic() - since
            if self._paused or late < self._seconds:
                continue
            if reported != since:
                reported = since
                _say(f"step {self._step} has taken {late:.0f} s; run.stuck_after_seconds is {self._seconds:g}\n{_stacks()}")
            elif late >= 2 * self._seconds:
                error = StuckStep(f"step {self._step} has taken {late:.0f} s, twice run.stuck_after_seconds: this process ends")
                _say(f"{error}. The same command resumes\n{_stacks()}")
                _announce(error)
                self._leave(1)
                return


def _announce(error: StuckStep) -> None:
    """Tell the other processes. Messages go through process 0, so this would not end where that one stands still."""
    thread = threading.Thread(target=peers.announced, args=(error,), daemon=True)
    thread.start()
    thread.join(_ANNOUNCE_SECONDS)


def _stacks() -> str:
    """The Python stacks of all threads, the main thread first."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sorted(sys._current_frames().items(), key=lambda item: item[0] != threading.main_thread().ident)
    this_thread = threading.get_ident()
    return "".join(
        f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}" for ident, frame in frames if ident != this_thread
    )


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)
