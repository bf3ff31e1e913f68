"""Prepared sets in a bucket: their shards are copied to this machine once, as every batch reads from all of them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import filelock

from sere_jax import buckets
from sere_jax.buckets import Stored
from sere_jax.data.sources.bucket import objects
from sere_jax.data.sources.cache import VARIABLE, current
from sere_jax.data.sources.example import SourceError
from sere_jax.writing import place, replacing

_SHARD = re.compile(r"-(\w+)\.\w+-\d{5}-of-\d{5}$")
_COPIED = ".copied.json"  # name -> [size, checksum] of the whole files
_THREADS = 4  # files at once; each is one stream
_SECONDS = 10.0  # between lines of progress
_BLOCK = 1 << 22
_log = logging.getLogger(__name__)


def copied(spec: str, address: str, split: str) -> str:
    """The directory in the cache with the files of a prepared set that a split reads; those that are not there yet are copied first.

    Each file's checksum is compared with the store's when it is copied. A later start copies only what has changed in the bucket, or
    has another size here. One process of a machine copies, and the others wait. Raises SourceError where there is no cache or no
    prepared set, where the files do not fit, or one cannot be copied.
    """
    cache = current()
    if not cache.directory:
        raise SourceError(
            f"{spec!r}: a prepared set in a bucket is copied to this machine; expected --config.data.cache_dir=DIR (docs/pods.md), "
            f"or the environment's {VARIABLE}, which all programs read"
        )
    cache.check(spec)
    wanted = [item for item in objects(spec, address) if "/" not in item.name and _belongs(item.name, split)]
    if "dataset_info.json" not in {item.name for item in wanted}:
        raise SourceError(f"{spec!r}: expected a prepared set, found no {address}/dataset_info.json")
    directory = Path(cache.directory) / f"set-{hashlib.sha256(os.fspath(place(address)).encode()).hexdigest()[:24]}"
    directory.mkdir(exist_ok=True)
    with filelock.FileLock(directory / ".lock"):  # released when the process ends, however it ends
        notes = _notes(directory)
        _copy(spec, address, [item for item in wanted if not _is_there(directory, item, notes)], directory)
    return str(directory)


def _belongs(name: str, split: str) -> bool:
    """Whether a split such as train[:50%]+test may read a file; all read what is no shard."""
    match = _SHARD.search(name)
    return match is None or match[1] in re.findall(r"\w+", split) or "all" in re.findall(r"\w+", split)


def _is_there(directory: Path, item: Stored, notes: dict[str, list[int]]) -> bool:
    path = directory / item.name
    return notes.get(item.name) == [item.size, item.checksum] and path.is_file() and path.stat().st_size == item.size


def _notes(directory: Path) -> dict[str, list[int]]:
    try:
        return json.loads((directory / _COPIED).read_text())
    except (OSError, ValueError):  # nothing was copied yet
        return {}


def _copy(spec: str, address: str, missing: list[Stored], directory: Path) -> None:
    total, start = sum(item.size for item in missing), time.monotonic()
    free = shutil.disk_usage(directory).free
    if total > free:
        raise SourceError(f"{spec!r}: {total / 1e9:.1f} GB are to be copied to {directory}, where {free / 1e9:.1f} GB are free")
    if missing:
        _log.warning("%s: copying %d files, %.1f GB, to %s, once", spec, len(missing), total / 1e9, directory)
    done, last_line, notes = 0, start, _notes(directory)
    with ThreadPoolExecutor(_THREADS) as threads:
        jobs = {threads.submit(_fetch, f"{os.fspath(place(address))}/{item.name}", item, directory / item.name): item for item in missing}
        try:
            for job in as_completed(jobs):
                job.result()
                item = jobs[job]
                done += item.size
                with replacing(directory / _COPIED) as temporary:
                    temporary.write_text(json.dumps(notes := notes | {item.name: [item.size, item.checksum]}))
                if time.monotonic() - last_line > _SECONDS:
                    last_line = time.monotonic()
                    rate = done / (last_line - start)
                    _log.warning("%s: copied %.1f of %.1f GB, %.0f s left", spec, done / 1e9, total / 1e9, (total - done) / rate)
        except OSError as error:
            threads.shutdown(cancel_futures=True)
            raise SourceError(
                f"{spec!r}: {address} cannot be copied to {directory}: {error.strerror or error}. The same command goes on"
            ) from error


def _fetch(address: str, item: Stored, path: Path) -> None:
    """Copy an object, whole or not at all. Raises OSError where that fails, or the bytes are not those that the store holds."""
    temporary = path.with_name(f".{path.name}.part")
    for _ in range(2):  # a transfer may be damaged
        buckets.get(address, temporary)
        if temporary.stat().st_size == item.size and item.checksum in (-1, _checksum(temporary)):
            os.replace(temporary, path)
            return
    temporary.unlink()
    raise OSError(f"{address} arrived damaged twice, or changes while it is read")


def _checksum(path: Path) -> int:
    checksum = 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            checksum = buckets.checksum(block, checksum)
    return checksum
