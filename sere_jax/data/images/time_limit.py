"""Calls that are given up after some seconds: decoders written in C cannot be interrupted."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

R = TypeVar("R")


class OutOfTime(RuntimeError):
    """A call took longer than it may."""


class _Caller:
    """A thread that makes calls for one other thread, one at a time."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], Any]] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="decoder", daemon=True).start()

    def call(self, work: Callable[[], Any], seconds: float) -> Any:
        self._calls.put(work)
        result, error = self._results.get(timeout=seconds)
        if error is not None:
            raise error
        return result

    def _work(self) -> None:
        while True:
            work = self._calls.get()
            try:
                answer: tuple[Any, BaseException | None] = work(), None
            except BaseException as error:
                answer = None, error
            del work  # or the bytes of an image would live until the next
            self._results.put(answer)
            del answer


_CALLERS = threading.local()


def within(seconds: float, function: Callable[..., R], *args: Any) -> R:
    """`function(*args)` in a thread of this thread's own, or OutOfTime after `seconds`.

    What takes longer is left running, because a thread cannot be ended. The next call then gets a new thread.

    Example:
      >>> within(20.0, divmod, 7, 3)
      (2, 1)
    """
    caller = getattr(_CALLERS, "caller", None) or _Caller()
    _CALLERS.caller = None  # an interrupt while waiting leaves it behind too: its late answer must meet no other call
    try:
        result = caller.call(lambda: function(*args), seconds)
    except queue.Empty:
        raise OutOfTime(f"took longer than {seconds:g} s") from None
    except Exception:
        _CALLERS.caller = caller
        raise
    _CALLERS.caller = caller
    return result
