"""Batches for the device, made one ahead in a thread, and how long the device went without."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from sere_jax.train.meter import Meter
from sere_jax.train.signals import Signals

Batch = Any


class DataEnded(RuntimeError):
    """The batches ended before the last step."""


class Feed:
    """Batches, one of them on the device ahead of time, made in a thread of their own."""

    def __init__(self, batches: Iterator[Batch], put: Callable[[Batch], Batch], count: int) -> None:
        self._batches, self._put, self._count = batches, put, count
        self._made: queue.SimpleQueue[tuple[Batch, BaseException | None]] = queue.SimpleQueue()
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
        """The next batch, or None when a signal came while there was none. Counts the time in which the device was idle."""
        idle_since: float | None = None
        while True:
            try:
                batch, error = self._made.get(timeout=0.002 if idle_since is None else 0.02)
            except queue.Empty:
                if signals.waiting():
                    return None
                if idle_since is None and not meter.device_busy():
                    idle_since = time.perf_counter()
                continue
            if idle_since is not None:
                meter.data_wait += time.perf_counter() - idle_since
            if error is not None:
                if signals.waiting():  # Ctrl-C reaches the workers too, and ends them
                    return None
                raise error
            self._free.release()
            return batch

    def _fill(self) -> None:
        try:
            for made in range(self._count):
                self._free.acquire()
                if self._closed:
                    return
                try:
                    batch = next(self._batches)
                except StopIteration:
                    raise DataEnded(f"the data ended after {made} batches of the {self._count} that were left to do") from None
                self._made.put((self._put(batch), None))
        except BaseException as error:  # handed to the thread that trains, whatever it is
            self._made.put((None, error))
