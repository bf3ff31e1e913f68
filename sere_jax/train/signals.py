"""Signals as requests to stop: finish the step, save, end with exit code 0.

This module imports no JAX at its top, so that a program can listen before its slow imports.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

# SIGTERM: schedulers and preemption. SIGINT: Ctrl-C. SIGHUP: the terminal was closed. SIGUSR1: Slurm's `--signal=USR1@60`.
STOPPING = tuple(signal.Signals[name] for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1") if hasattr(signal, name))

# Launchers forward a Ctrl-C that the terminal has already sent to the whole group. A second one this soon is no second wish.
_SAME_INTERRUPT_SECONDS = 0.5
_SHOW_CURSOR = b"\x1b[?25h"


class Interrupted(BaseException):
    """Raised by a signal inside work that may be dropped: the start, or an evaluation. No `except Exception` swallows it."""


class Signals:
    """Collects SIGTERM, SIGINT, SIGHUP and SIGUSR1, and says when to stop. Use it in a `with`, in the main thread.

    A thread answers a signal at once, even while the main thread compiles. A second Ctrl-C ends the process (or raises
    KeyboardInterrupt, see `ends_process`). In other threads Python allows no handlers, and signals keep their meaning.

    With several processes, JAX's own SIGTERM notice makes all of them agree on one step. Its handler replaces ours for SIGTERM;
    the other signals, and a SIGTERM that came before JAX was started, are passed on to it.

    Args:
      ends_process: a second Ctrl-C ends the process at once, with exit code 130. For programs; a library raises instead.
    """

    def __init__(self, ends_process: bool = False) -> None:
        self.name = "SIGTERM"  # the first signal; another process's is a SIGTERM to us
        self.plan = "stopping before the first step; nothing has to be saved"
        self.say: Callable[[str], None] = _print_error
        self._ends_process = ends_process
        self._came = self._interruptible = self._several = False
        self._came_at, self._calls = 0.0, 0
        self._replaced: dict[signal.Signals, Any] = {}
        self._pipe: tuple[int, int] | None = None
        self._replaced_wakeup = -1
        self._watcher: threading.Thread | None = None
        self._answer: threading.Thread | None = None  # says the plan

    def __enter__(self) -> Signals:
        if threading.current_thread() is not threading.main_thread():
            return self
        self._pipe = os.pipe()
        for end in self._pipe:
            os.set_inheritable(end, False)
        os.set_blocking(self._pipe[1], False)
        self._replaced_wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        self._watcher = threading.Thread(target=self._watch, args=(self._pipe[0],), name="signals", daemon=True)
        self._watcher.start()
        for number in STOPPING:
            if number != getattr(signal, "SIGHUP", None) or signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                self._replaced[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._replaced.items():
            if not (self._several and number == signal.SIGTERM):  # that one is JAX's by now
                # The program ends now. A scheduler's late signal must not turn its exit code into a failure.
                late = self._ends_process and number != signal.SIGINT
                signal.signal(number, signal.SIG_IGN if late else handler)
        self._replaced = {}
        if self._pipe is not None:
            signal.set_wakeup_fd(self._replaced_wakeup)
            os.close(self._pipe[1])  # ends the watcher, which closes the other end
            self._pipe = None
            # The program may end at once, and the answer with it; a terminal that takes no output may not hold it up.
            self._join(self._watcher)
            self._join(self._answer)  # started by the watcher, so read after it

    @staticmethod
    def _join(thread: threading.Thread | None) -> None:
        if thread is not None:
            thread.join(timeout=1.0)

    def join(self, processes: int, interruptible: bool = False) -> None:
        """Say how many processes the run has, once that is known.

        With `interruptible`, a single process stops at once on a signal, by `Interrupted`, until `begin` is called.
        """
        self._several = processes > 1
        if self._several:
            if self._came:
                os.kill(os.getpid(), signal.SIGTERM)  # to JAX's handler
        elif signal.SIGTERM in self._replaced:
            signal.signal(signal.SIGTERM, self._handle)  # JAX has taken it if it was started for one process
        self._interruptible = interruptible and not self._several
        if self._interruptible and self._came:
            raise Interrupted

    def begin(self) -> bool:
        """Say that the steps begin, so that a signal waits for the end of a step. Returns whether to stop before the first."""
        self._interruptible = False
        self.plan = "stopping after this step, then saving"
        return self.reached()

    def waiting(self) -> bool:
        """Whether a signal came and this process may stop where it is: it is the only one, so nobody waits for it."""
        return self._came and not self._several

    def reached(self) -> bool:
        """Whether to stop here. Every process asks equally often, after each step; all get True from the same call.

        JAX agrees on 1 + the largest number that any process has passed so far, and compares for equality. Numbers before the first
        call are 0, so the calls since this start are counted, not the steps of the run.
        """
        if not self._several:
            return self._came
        from jax.experimental import multihost_utils

        self._calls += 1
        return bool(multihost_utils.reached_preemption_sync_point(self._calls))

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """Let a signal break off what runs inside, by `Interrupted`.

        With several processes the signal waits for its end, because the others would wait in a collective for this one.
        """
        if self.waiting():
            raise Interrupted
        self._interruptible = not self._several
        try:
            yield
        finally:
            self._interruptible = False

    def _handle(self, number: int, _: FrameType | None) -> None:
        """Runs in the main thread, as soon as that is in Python."""
        if not self._came:
            self._came, self.name, self._came_at = True, signal.Signals(number).name, time.monotonic()
        elif number == signal.SIGINT and not self._ends_process and self._is_second():
            raise KeyboardInterrupt
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)
        elif self._interruptible:
            self._interruptible = False
            raise Interrupted

    def _is_second(self) -> bool:
        return time.monotonic() - self._came_at > _SAME_INTERRUPT_SECONDS

    def _watch(self, pipe: int) -> None:
        """Runs in a thread: Python writes the number of each signal into the pipe, whatever the main thread does."""
        answered_at: float | None = None
        with open(pipe, "rb", buffering=0) as numbers:
            while number := numbers.read(1):
                if number[0] not in STOPPING:
                    continue
                if answered_at is None:
                    answered_at = time.monotonic()
                    again = " again" if number[0] == signal.SIGINT else ""
                    text = f"{signal.Signals(number[0]).name}: {self.plan} (Ctrl-C{again} ends now)"
                    # In a thread of its own: a terminal that takes no output must not keep a second Ctrl-C from working.
                    self._answer = threading.Thread(target=self.say, args=(text,), daemon=True)
                    self._answer.start()
                elif number[0] == signal.SIGINT and self._ends_process and time.monotonic() - answered_at > _SAME_INTERRUPT_SECONDS:
                    _end_now()


@contextlib.contextmanager
def listening(signals: Signals | None) -> Iterator[Signals]:
    """`signals`, or without any those of this block."""
    if signals is not None:
        yield signals
        return
    import jax

    with Signals() as of_this_block:
        of_this_block.join(jax.process_count())
        yield of_this_block


def _print_error(text: str) -> None:
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def _end_now() -> None:
    """End this process without waiting for anything; complete checkpoints stay, as after a SIGKILL."""
    last_words = threading.Thread(target=_write_last_words, daemon=True)
    last_words.start()
    last_words.join(timeout=1.0)  # a terminal may take no output
    os._exit(128 + signal.SIGINT)


def _write_last_words() -> None:
    with contextlib.suppress(OSError):
        if os.isatty(1):
            os.write(1, _SHOW_CURSOR)  # the live display hides it
        os.write(2, b"ended at once; what was done since the last checkpoint is lost\n")
