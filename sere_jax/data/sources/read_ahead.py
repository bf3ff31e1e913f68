"""Files that threads fetch before they are read, within a bound on memory."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor

import numpy as np
from jaxtyping import Int

_THREADS = 32  # requests of a process at once: at 50 ms each, some 600 images a second
_BYTES = 256_000_000  # of files that are fetched and not yet read
_CALLS = 8  # files that are not read after so many later calls were asked for in vain


@dataclasses.dataclass
class _Fetch:
    future: Future[bytes]
    reads: int  # that are still expected
    call: int  # the newest one that asked for the file


class ReadAhead:
    """Files by number. Threads may share one.

    Args:
      load: fetches a file.
      sizes: bytes of each file, negative where there is no such file.
    """

    def __init__(self, load: Callable[[int], bytes], sizes: Int[np.ndarray, " n"]) -> None:
        self._load, self._sizes = load, sizes
        self._threads = ThreadPoolExecutor(_THREADS)  # starts no thread before there is work
        self._lock = threading.Lock()
        self._waiting: dict[int, int] = {}  # number -> expected reads, in the order of the calls
        self._fetches: dict[int, _Fetch] = {}
        self._bytes = self._calls = 0

    def begin(self, numbers: Sequence[int]) -> None:
        """Begin to fetch files; a number that comes twice is fetched once and read twice. Errors are raised by `read`."""
        with self._lock:
            self._calls += 1
            for number, fetch in list(self._fetches.items()):
                if fetch.call < self._calls - _CALLS:
                    fetch.future.cancel()
                    self._drop(number)
            for number in numbers:
                if begun := self._fetches.get(number):
                    begun.reads, begun.call = begun.reads + 1, self._calls
                else:
                    self._waiting[number] = self._waiting.get(number, 0) + 1
            self._submit()

    def read(self, number: int) -> bytes:
        """The bytes of a file, fetched now where nobody asked for it before. Raises what `load` raises."""
        with self._lock:
            fetch = self._fetches.get(number)
            if fetch is None and self._waiting.pop(number, 0):
                self._submit()
        if fetch is None:
            return self._load(number)
        try:
            return fetch.future.result()
        except CancelledError:
            return self._load(number)
        finally:
            with self._lock:
                fetch.reads -= 1
                if fetch.reads == 0 and self._fetches.get(number) is fetch:
                    self._drop(number)
                self._submit()

    def _submit(self) -> None:
        """Start what fits into the bound, and at least one fetch. The caller holds the lock."""
        while self._waiting:
            number = next(iter(self._waiting))
            if self._fetches and self._bytes + self._size(number) > _BYTES:
                return
            self._bytes += self._size(number)
            self._fetches[number] = _Fetch(self._threads.submit(self._load, number), self._waiting.pop(number), self._calls)

    def _drop(self, number: int) -> None:
        del self._fetches[number]
        self._bytes -= self._size(number)

    def _size(self, number: int) -> int:
        return max(int(self._sizes[number]), 0)
