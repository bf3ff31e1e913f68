"""The directory of this machine that keeps files of a bucket, and files of a bucket that are read through it.

A file is kept under a name made of its address and checksum, so a file that changes in the bucket gets another one. Files are
written whole, and their checksum is compared at each reading, so several processes may share a directory. While a program runs nothing is
evicted: the listings decide which files are kept, the first ones up to the limit. As every epoch reads each image once, no other choice of
as many bytes would be met more often. When a source is opened, files of others make room for what it will keep.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from sere_jax import buckets
from sere_jax.buckets import is_address
from sere_jax.data.sources.example import SourceError
from sere_jax.data.sources.folder import MAX_BYTES
from sere_jax.data.sources.read_ahead import ReadAhead
from sere_jax.writing import place

VARIABLE = "SERE_JAX_CACHE_DIR"
GIGABYTES = 100.0
_UNFINISHED = "unfinished"  # directory of files that are being written
_ABANDONED_S = 3600.0
_PREFIX = 2  # letters of the name of a directory of kept files
_log = logging.getLogger(__name__)


class Cache(NamedTuple):
    """Where files of a bucket are kept, "" for nowhere, and how many bytes; files of prepared sets are not counted."""

    directory: str
    limit: int

    def check(self, spec: str) -> None:
        """Make the directory. Raises SourceError where that fails."""
        if not self.directory:
            return
        if is_address(self.directory):
            raise SourceError(f"{spec!r}: found the cache directory {self.directory}, expected a directory of this machine")
        try:
            os.makedirs(os.path.join(self.directory, _UNFINISHED), exist_ok=True)
            self._remove_unfinished()
            if not os.access(self.directory, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            raise SourceError(f"{spec!r}: nothing can be written to the cache directory {self.directory}: {error.strerror}") from error

    def left(self, address: str) -> int:
        """The bytes that the other sources of this program leave for the files below an address."""
        return self.limit - sum(size for (directory, other), size in _planned.items() if directory == self.directory and other != address)

    def plan(self, address: str, size: int, paths: Callable[[], set[str]]) -> None:
        """Note that files below an address will take `size` bytes, and remove others until they fit, the least recently read ones first.

        `paths` gives those of these files, which stay. Of the processes of a machine one removes; a file that another program still
        needs is fetched again.
        """
        _planned[self.directory, address] = size
        claim = os.path.join(self.directory, _UNFINISHED, "removing")
        with contextlib.suppress(OSError):
            os.close(os.open(claim, os.O_CREAT | os.O_EXCL))
            try:
                files = list(self._files())
                if sum(kept for _, kept, _ in files) + size > self.limit:
                    needed = paths()
                    self._remove(sorted(file for file in files if file[2] not in needed), self.limit - size)
            finally:
                os.unlink(claim)

    def _files(self) -> Iterator[tuple[float, int, str]]:
        """Of each kept file: when it was last read, its size and its path."""
        with os.scandir(self.directory) as folders:
            for folder in folders:
                if len(folder.name) != _PREFIX:
                    continue
                with os.scandir(folder.path) as entries:
                    for entry in entries:
                        with contextlib.suppress(FileNotFoundError):  # another program has removed it
                            status = entry.stat()
                            yield max(status.st_atime, status.st_mtime), status.st_size, entry.path

    @staticmethod
    def _remove(files: Sequence[tuple[float, int, str]], room: int) -> None:
        """Remove files from the first on until the rest fits into `room` bytes."""
        excess, removed = sum(size for _, size, _ in files) - room, 0
        for _, size, path in files:
            if excess <= 0:
                break
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            excess, removed = excess - size, removed + 1
        if removed:
            _log.warning("%d files that were not read for longest were removed from the cache directory to keep its bound", removed)

    def _remove_unfinished(self) -> None:
        """Remove what processes that were killed had begun to write. Files are written within seconds."""
        with os.scandir(os.path.join(self.directory, _UNFINISHED)) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # another process removes it
                    if time.time() - entry.stat().st_mtime > _ABANDONED_S:
                        os.unlink(entry.path)


_settings: list[Cache] = []  # of this program: one, or none
_planned: dict[tuple[str, str], int] = {}  # bytes that each source of this program keeps, by directory and address


@contextlib.contextmanager
def using(directory: str, gigabytes: float) -> Iterator[None]:
    """Keep files of buckets in `directory` during the block, for sources that are opened in it; "" = the environment's choice."""
    _settings.append(_cache(directory, gigabytes))
    try:
        yield
    finally:
        _settings.pop()


def current() -> Cache:
    """The cache of `using`; elsewhere the directory that the environment's SERE_JAX_CACHE_DIR names, or none."""
    return _settings[-1] if _settings else _cache("", GIGABYTES)


def _cache(directory: str, gigabytes: float) -> Cache:
    name = directory or os.environ.get(VARIABLE, "")
    return Cache(str(place(name)) if name else "", round(gigabytes * 1e9))


class RemoteFiles:
    """Files in a bucket by number, read through a cache. Picklable; threads may share one.

    Args:
      address: what the names stand below, gs://BUCKET/NAME.
      files: name, size and checksum of each; a size of -1 where there is no such file.
      cache: where they are kept.
    """

    def __init__(self, address: str, files: Sequence[buckets.Stored], cache: Cache) -> None:
        self.address, self._cache = address, cache
        self._names = [file.name for file in files]
        self.sizes: Int[np.ndarray, " n"] = np.array([file.size for file in files], np.int64)
        self._checksums = np.array([file.checksum for file in files], np.int64)
        used = np.cumsum(np.maximum(self.sizes, 0))
        self._kept = int(np.searchsorted(used, cache.left(address), side="right")) if cache.directory else 0  # the first ones are kept
        if self._kept:
            cache.plan(address, int(used[self._kept - 1]), lambda: {self._path(number) for number in range(self._kept)})
        self.damaged = 0  # kept files that were fetched again
        self._full = False
        self._ahead = ReadAhead(self._load, self.sizes)

    def read(self, number: int) -> bytes:
        """The bytes of a file. Raises OSError where it cannot be read, has changed since it was listed, or has more than MAX_BYTES."""
        return self._ahead.read(number)

    def read_ahead(self, numbers: Sequence[int]) -> None:
        """Begin to fetch files that will be asked for soon. Errors are raised by `read`."""
        self._ahead.begin(numbers)

    def _load(self, number: int) -> bytes:
        size, path = int(self.sizes[number]), self._path(number) if self._is_kept(number) else ""
        address = f"{self.address}/{self._names[number]}"
        if size < 0:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), address)
        if size > MAX_BYTES:
            raise OSError(errno.EFBIG, f"{size} bytes are more than an image may have ({MAX_BYTES})", address)
        data = self._from_disk(number, path) if path else None
        if data is None:
            data = buckets.read_bytes(address)
            if not self._is_whole(number, data):
                data = buckets.read_bytes(address)  # the transfer may have been damaged
            if not self._is_whole(number, data):
                raise OSError(errno.EIO, "its bytes are not those that were listed: it has changed since the start", address)
            if path:
                self._keep(path, data)
        return data

    def _is_kept(self, number: int) -> bool:
        """Whether a file belongs into the cache. Without a checksum, a file of the same size could be another one."""
        return number < self._kept and int(self._checksums[number]) >= 0 and not self._full

    def _path(self, number: int) -> str:
        name = hashlib.sha256(f"{self.address}/{self._names[number]}".encode(errors="surrogateescape")).hexdigest()
        return os.path.join(self._cache.directory, name[:_PREFIX], f"{name[_PREFIX:32]}-{self._checksums[number]:08x}")

    def _from_disk(self, number: int, path: str) -> bytes | None:
        try:
            with open(path, "rb") as file:
                data = file.read()
        except OSError:
            return None
        if self._is_whole(number, data):
            return data
        self.damaged += 1
        _log.warning("%s: the kept copy of %s is damaged and is fetched again (%d so far)", path, ascii(self._names[number]), self.damaged)
        return None

    def _is_whole(self, number: int, data: bytes) -> bool:
        expected = int(self._checksums[number])
        return len(data) == int(self.sizes[number]) and expected in (-1, buckets.checksum(data))

    def _keep(self, path: str, data: bytes) -> None:
        temporary = os.path.join(self._cache.directory, _UNFINISHED, f"{os.path.basename(path)}.{os.getpid()}-{threading.get_ident()}")
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(temporary, "wb") as file:
                file.write(data)
            os.replace(temporary, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            if not self._full:
                self._full = True
                _log.warning("%s: no more files are kept there: %s. They are read from the bucket", self._cache.directory, error.strerror)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_ahead"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._ahead = ReadAhead(self._load, self.sizes)
