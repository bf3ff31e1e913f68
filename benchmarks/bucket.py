"""Images a second from a bucket against a disk: one at a time, read ahead, from the cache, and copied as a whole first.

    python -m benchmarks.bucket [--images=512] [--bytes=100000] [--latency_ms=50] [--batch=64]
    python -m benchmarks.bucket --listing=1000000 [--folders=1000] [--latency_ms=50]

The bucket is a server on this machine that delays each answer, and takes some CPU time from the reader. Nothing is decoded: a row
says how fast bytes arrive in one process. `--listing` opens a folder of that many names instead, spread over `--folders`: the pages,
of 1,000 names, are made in the process, as JSON, and the store's names are part of the memory before. It needs requirements-cloud.txt.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import bisect
import json
import multiprocessing
import os
import resource
import socket
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sere_jax import buckets
from sere_jax.data.sources import cache, listing
from sere_jax.data.sources.open import Source, open_source


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--bytes", type=int, default=100_000)
    parser.add_argument("--latency_ms", type=float, default=50.0)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--listing", type=int, default=0)
    parser.add_argument("--folders", type=int, default=1000)
    flags = parser.parse_args()
    if flags.listing:
        _list(flags.listing, flags.folders, flags.latency_ms / 1000)
        return
    with tempfile.TemporaryDirectory() as directory:
        root, rng = Path(directory), np.random.default_rng(0)
        for number in range(flags.images):
            path = root / "set" / f"{number % 10}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(rng.bytes(flags.bytes))
        with _bucket(root, flags.latency_ms / 1000):
            _measure(root, flags.batch)


def _measure(root: Path, batch: int) -> None:
    local, remote = open_source(f"folder:{root / 'set'}"), open_source("folder:gs://bkt/set")
    with cache.using(str(root / "kept"), 100.0):
        with_cache = open_source("folder:gs://bkt/set")
    _report("one at a time", remote, batch, ahead=False, images=64)
    for _ in range(2):  # alternating, as other programs run too
        _report("local files", local, batch)
        _report("read ahead, no cache", remote, batch)
        _report("read ahead, cache", with_cache, batch)  # the first time it is empty
    began = time.monotonic()
    with ThreadPoolExecutor(32) as threads:
        list(threads.map(lambda path: _copy(path, root), (path for path, _ in remote.places())))
    print(f"{'copied before the start':26}{len(remote) / (time.monotonic() - began):8.0f} images/s")


def _copy(address: str, root: Path) -> None:
    path = root / "copy" / address.removeprefix("gs://bkt/")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buckets.read_bytes(address))


def _report(name: str, source: Source, batch: int, *, ahead: bool = True, images: int = 0) -> None:
    """Read in batches, in a shuffled order."""
    order = np.random.default_rng(1).permutation(len(source))[: images or None].tolist()
    began = time.monotonic()
    for start in range(0, len(order), batch):
        if ahead:
            source.read_ahead(order[start : start + batch])
        for index in order[start : start + batch]:
            source[index]
    print(f"{name:26}{len(order) / (time.monotonic() - began):8.0f} images/s", flush=True)


def _list(count: int, folders: int, latency: float) -> None:
    """Open a folder and take the digest of its listing, as a start does."""
    pages = _Pages(count, folders, latency)
    buckets._filesystem = lambda: pages  # type: ignore[assignment]
    before, began, cpu = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic(), time.process_time()
    source = open_source("folder:gs://bkt/set")
    listing.take(source)
    seconds, most = time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"listing of {len(source):,} objects, {pages.requests:,} pages: {seconds:.1f} s, {time.process_time() - cpu:.1f} s of CPU time")
    print(f"at most {most / 1e3:.0f} MB, {before / 1e3:.0f} MB before")


class _Pages:
    """A store's answers to listings of set/: `count` objects, equally many in each folder, 1,000 a page."""

    def __init__(self, count: int, folders: int, latency: float) -> None:
        self.requests, self._latency = 0, latency
        self._names = [f"set/n{number // -(-count // folders):08d}/{number:08d}.jpg" for number in range(count)]

    def call(
        self, *_: str, pageToken: str | None, startOffset: str | None, endOffset: str | None, **__: object
    ) -> dict[str, Any]:  # as the store names them
        self.requests += 1
        time.sleep(self._latency)
        first = bisect.bisect_left(self._names, pageToken or startOffset or "")
        end = len(self._names) if endOffset is None else bisect.bisect_left(self._names, endOffset)
        last = min(first + 1000, end)
        items = ",".join(f'{{"name": "{name}", "size": "{len(name) + 100_000}", "crc32c": "yZRlqg=="}}' for name in self._names[first:last])
        token = f', "nextPageToken": "{self._names[last]}"' if last < end else ""
        return json.loads(f'{{"items": [{items}]{token}}}')


@contextmanager
def _bucket(root: Path, latency: float) -> Iterator[None]:
    """The bucket gs://bkt with the files below a directory, in a process of its own; this process's environment points to it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(root, latency, port), daemon=True)
    process.start()
    os.environ |= {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}", "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
    os.environ |= {"NO_GCE_CHECK": "true", "FSSPEC_GCS_TOKEN": "anon"}
    while socket.socket().connect_ex(("127.0.0.1", port)):
        time.sleep(0.1)
    yield
    process.terminate()


def _serve(root: Path, latency: float, port: int) -> None:
    """Answer the two requests of a source, listing and reading, from files. The emulator of the tests takes 20 ms of CPU time for one."""
    from aiohttp import web

    files = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    items = [
        {"name": name, "size": str(len(data)), "crc32c": base64.b64encode(buckets.checksum(data).to_bytes(4, "big")).decode()}
        for name, data in files.items()
    ]

    async def listing(request: web.Request) -> web.Response:
        await asyncio.sleep(latency)
        return web.json_response({"items": [item for item in items if item["name"].startswith(request.query.get("prefix", ""))]})

    async def reading(request: web.Request) -> web.Response:
        await asyncio.sleep(latency)
        return web.Response(body=files[request.match_info["name"]])

    app = web.Application()
    app.router.add_get("/storage/v1/b/bkt/o", listing)
    app.router.add_get("/download/storage/v1/b/bkt/o/{name:.*}", reading)
    web.run_app(app, host="127.0.0.1", port=port, print=None)


if __name__ == "__main__":
    main()
