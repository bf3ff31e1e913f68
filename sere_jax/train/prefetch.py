"""Batches for the device, made one ahead in a thread, and how long the device waited for them."""

from __future__ import annotations

import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from sere_jax.train.meter import Meter
from sere_jax.train.signals import STOPPING, Signals

Batch = Any


class DataEnded(RuntimeError):
    """The batches ended before the last step."""


class Feed:
    """The batches of a run in order, made by a thread that keeps one of them ready on the device.

    Args:
      batches: host batches, taken in the thread. Closed at the end, where it has a `close`.
      put: host batch -> device batch.
      count: how many are taken.
    """

    def __init__(self, batches: Iterator[Batch], put: Callable[[Batch], Batch], count: int) -> None:
        self._batches, self._put, self._count = batches, put, count
        self._ready: queue.SimpleQueue[tuple[Batch, BaseException | None]] = queue.SimpleQueue()
        self._free = threading.Semaphore(1)
        self._closed = False
        self._thread = threading.Thread(target=self._fill, name="batches", daemon=True)

    def __enter__(self) -> Feed:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self._free.release()
        self._thread.join(timeout=2)
        if not self._thread.is_alive() and hasattr(self._batches, "close"):
            self._batches.close()

    def take(self, meter: Meter, signals: Signals) -> Batch | None:
        """The next batch, or None if a signal came while there was none. Adds the time in which the device was idle to the meter.

        Raises what the iterator or `put` raised in the thread, and DataEnded.
        """
        idle_since: float | None = None
        while True:
            try:
                batch, error = self._ready.get(timeout=0.002 if idle_since is None else 0.02)
            except queue.Empty:
                if signals.waiting():
                    return None
                if idle_since is None and not meter.device_busy():
                    idle_since = time.perf_counter()
                continue
            if idle_since is not None:
                meter.data_wait += time.perf_counter() - idle_since
            if error is not None:
                if signals.waiting():  # the signal may have ended what the batches come from: a pipe, a mount
                    return None
                raise error
            self._free.release()
            return batch

    def _fill(self) -> None:
        if hasattr(signal, "pthread_sigmask"):
            # Ctrl-C and a scheduler's SIGTERM reach the whole process group. Data workers are started from this thread and inherit its
            # mask, so that they work on until the run has stopped, also when the signal comes while they start.
            signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        try:
            for taken in range(self._count):
                self._free.acquire()
                if self._closed:
                    return
                try:
                    batch = next(self._batches)
                except StopIteration:
                    raise DataEnded(f"the data ended after {taken} of the {self._count} batches that this run still needed") from None
                self._ready.put((self._put(batch), None))
        except BaseException as error:  # raised again by `take`, in the thread that trains
            self._ready.put((None, error))
