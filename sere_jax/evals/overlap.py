"""Decode, compute and collect at the same time: a pass over images in which neither the device nor the host waits for the other."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np

from sere_jax.types import PyTree

Item = TypeVar("Item")
_AHEAD = 1  # items that a thread holds ready, beside the one that it makes


def in_thread(items: Iterable[Item]) -> Generator[Item]:
    """The items in order, made by a thread that is one or two items ahead. What the iterable raises is raised here.

    >>> list(in_thread(range(3)))
    [0, 1, 2]
    """
    iterator = iter(items)
    ready: queue.Queue[tuple[bool, Any]] = queue.Queue(_AHEAD)
    stopped = threading.Event()

    def put(more: bool, value: Any) -> None:
        while not stopped.is_set():
            try:
                return ready.put((more, value), timeout=0.1)
            except queue.Full:
                continue

    def fill() -> None:
        try:
            for item in iterator:
                put(True, item)
                if stopped.is_set():
                    return
            put(False, None)
        except BaseException as error:  # raised again by the caller's thread
            put(False, error)

    thread = threading.Thread(target=fill, name="images", daemon=True)
    thread.start()
    try:
        while True:
            more, value = ready.get()
            if more:
                yield value
            elif value is None:
                return
            else:
                raise value
    finally:
        stopped.set()
        thread.join(timeout=2)
        if not thread.is_alive() and hasattr(iterator, "close"):
            iterator.close()


def computed(batches: Iterable[Item], compute: Callable[[Item], PyTree]) -> Iterator[tuple[Item, PyTree]]:
    """Yield each batch with what `compute` makes of it, as NumPy arrays, in order.

    A thread makes the batches. `compute` only starts the device's work (as calls of jitted functions do), and the results of a batch
    are awaited when the next one is under way. So at any time one batch is made, one is on the device, and one is with the caller.

    >>> [(batch, int(double)) for batch, double in computed([1, 2], lambda batch: jax.numpy.int32(2 * batch))]
    [(1, 2), (2, 4)]
    """
    under_way: list[tuple[Item, PyTree]] = []
    for batch in in_thread(batches):
        results = compute(batch)
        for leaf in jax.tree.leaves(results):
            leaf.copy_to_host_async()
        under_way.append((batch, results))
        if len(under_way) > 1:
            yield _finished(*under_way.pop(0))
    while under_way:
        yield _finished(*under_way.pop(0))


def _finished(batch: Item, results: PyTree) -> tuple[Item, PyTree]:
    return batch, jax.tree.map(np.asarray, results)
