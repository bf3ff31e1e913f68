"""Paths in a bucket, `gs://BUCKET/NAME`: which of them are supported, and how whole files get there and back.

Such a path is etils' `epath.Path`, which has the methods of `pathlib.Path`; gcsfs (the extra `cloud`) carries the bytes and repeats failed
requests with growing pauses. A bucket has no directories, appends nothing and renames by copying, so files are made on the local disk and
put as wholes: a reader sees the old object or the new one.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import functools
import importlib.util
import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from etils import epath

from sere_jax import ranges

Location: TypeAlias = Path | epath.Path  # a path on this machine or in a bucket

_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.DOTALL)
_NEARLY = re.compile(r"\s*(gs|gcs|s3|az|abfss?|hdfs|https?|file):/", re.IGNORECASE)  # gs:/bucket, GS://bucket: no one names a directory so
_PATTERN = re.compile(r"[*?\[\]\x00-\x1f]")  # gcsfs takes such a name for a pattern, and would delete what it matches
_BUCKET = re.compile(r"[a-z0-9][a-z0-9_.-]{1,220}[a-z0-9]")

_LISTINGS = 32  # requests at once


def is_address(path: str | os.PathLike[str]) -> bool:
    """Whether a path is an address, such as `gs://bucket/run`, and no path of this machine.

    Example:
      >>> is_address("gs://bucket/run"), is_address("folder:runs/a")
      (True, False)
    """
    return any(form.match(os.fspath(path)) for form in (_ADDRESS, _NEARLY))


def address_mistake(address: str) -> str:
    """Why an address cannot be read from or written to, as the end of a message; "" where it can.

    Example:
      >>> address_mistake("s3://bucket/run")
      'expected a directory or gs://BUCKET/NAME; s3:// is not supported: mount the bucket and name the mount, as in /mnt/bucket/run'
    """
    match = _ADDRESS.match(address)
    if match is None:
        return f"expected a directory or gs://BUCKET/NAME; a directory of that name is ./{address}" if _NEARLY.match(address) else ""
    scheme, rest = match.groups()
    if scheme != "gs":
        return (
            f"expected a directory or gs://BUCKET/NAME; {scheme}:// is not supported: "
            f"mount the bucket and name the mount, as in /mnt/{rest}"
        )
    bucket, _, name = rest.partition("/")
    if not _BUCKET.fullmatch(bucket) or not name.strip("/") or ".." in name.split("/"):
        return "expected gs://BUCKET/NAME, with a bucket's name of small letters, digits and .-_ and a name without '..'"
    if _PATTERN.search(name):
        return "expected gs://BUCKET/NAME, with a name without the signs of patterns, * ? [ ], and without line breaks"
    if importlib.util.find_spec("gcsfs") is None:
        return (
            "which needs gcsfs: pip install -r requirements-cloud.txt. Without it, "
            f"mount the bucket (docs/pods.md) and name the mount, as in /mnt/{rest}"
        )
    return ""


def location(address: str | os.PathLike[str]) -> epath.Path:
    """The path that an address means. Nothing is asked of the bucket."""
    _set_up()
    return epath.Path(re.sub(r"(?<!:)/{2,}", "/", os.fspath(address)).rstrip("/"))


def path_of(path: str | os.PathLike[str]) -> Location:
    """A path as it was written: relative ones stay relative.

    Example:
      >>> path_of("runs/a").parts, path_of("gs://bucket/a").name
      (('runs', 'a'), 'a')
    """
    return location(path) if is_address(path) else Path(path)


@functools.cache
def _set_up() -> None:
    """Tell fsspec to ask the bucket each time, and gcsfs that its errors are reported here.

    TensorStore and other processes write into the same bucket, so a listing that was kept is soon wrong.
    """
    import fsspec.config

    for protocol in ("gs", "gcs"):
        fsspec.config.conf.setdefault(protocol, {}).setdefault("use_listings_cache", False)
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)


def failures() -> tuple[type[Exception], ...]:
    """The exceptions by which a transfer fails; OSError alone until gcsfs is in use."""
    if "gcsfs" not in sys.modules:
        return (OSError,)
    import aiohttp
    import gcsfs.retry
    import google.auth.exceptions

    return (OSError, gcsfs.retry.HttpError, aiohttp.ClientError, google.auth.exceptions.GoogleAuthError)


class Outage(OSError):
    """A bucket that did not answer, or could not serve now, for as long as requests are repeated. A later start may succeed."""


def is_outage(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from, is an `Outage`, of this process or of another one."""
    while error is not None:
        if isinstance(error, Outage) or getattr(error, "outage", False):
            return True
        error = error.__cause__
    return False


@contextlib.contextmanager
def os_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what gcsfs and its libraries raise during the block into an OSError that names `path`, `Outage` where requests were repeated."""
    try:
        yield
    except Exception as error:
        transfer = type(error) is OSError and error.errno is None and is_address(path)  # gcsfs says so that access is denied
        if not transfer and (isinstance(error, OSError) or not isinstance(error, failures())):
            raise
        text = " ".join(str(error).split()) or type(error).__name__
        kind = Outage if "gcsfs" in sys.modules and sys.modules["gcsfs.retry"].is_retriable(error) else OSError
        raise kind(errno.EIO, text[:300], os.fspath(path)) from error


@contextlib.contextmanager
def _writing(path: epath.Path) -> Iterator[None]:
    """`os_errors` of a block that writes. What is not there then is the bucket."""
    try:
        with os_errors(path):
            yield
    except FileNotFoundError as error:  # gcsfs names the request
        raise _no_bucket(os.fspath(path)) from error


def _no_bucket(path: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, f"there is no bucket {'/'.join(path.split('/')[:3])}", path)


def put(file: Path, path: epath.Path) -> None:
    """Copy a local file to a path in a bucket, whole or not at all. Raises OSError where that fails after several tries."""
    with _writing(path):
        _filesystem().put_file(str(file), os.fspath(path))


def put_tree(directory: Path, path: epath.Path) -> None:
    """Copy all files below a local directory to the same names below a path in a bucket. Raises OSError as `put` does."""
    for file in directory.rglob("*"):
        if file.is_file():
            put(file, path / file.relative_to(directory).as_posix())


def copy_tree(path: epath.Path, target: epath.Path) -> None:
    """Copy all objects below a path within the bucket; their bytes do not pass through this machine."""
    with _writing(path):
        _filesystem().copy(os.fspath(path), os.fspath(target), recursive=True)


def put_bytes(path: epath.Path, content: bytes) -> None:
    """Write an object, whole or not at all. Raises OSError where that fails after several tries."""
    with _writing(path):
        _filesystem().pipe_file(os.fspath(path), content)


def create(path: epath.Path, content: bytes) -> bool:
    """Write an object that does not exist yet; False, and nothing is written, where it does. The bucket decides, so two cannot both win."""
    with _writing(path):
        try:
            _filesystem().pipe_file(os.fspath(path), content, mode="create")
        except Exception as error:
            if isinstance(error, FileExistsError) or getattr(error, "code", None) in (409, 412):
                return False
            raise
    return True


@contextlib.contextmanager
def uploading(path: epath.Path) -> Iterator[Path]:
    """Yield a local file of the same name, and put it at `path` when the block ends without an error."""
    with tempfile.TemporaryDirectory(prefix="sere-jax-") as directory:
        file = Path(directory) / path.name
        file.touch()
        yield file
        put(file, path)


@contextlib.contextmanager
def local_copy(path: Location) -> Iterator[Path]:
    """Yield a path on this machine with the content of `path`: the path itself, or a copy that lives as long as the block."""
    if not is_address(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="sere-jax-") as directory:
        file = Path(directory) / path.name
        get(os.fspath(path), file)
        yield file


def read_bytes(path: str) -> bytes:
    """The bytes of an object. Raises OSError, FileNotFoundError where there is none."""
    try:
        with os_errors(path):
            return _filesystem().cat_file(path)
    except FileNotFoundError as error:  # gcsfs names the request
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from error


def get(path: str, file: Path) -> None:
    """Copy an object to a local file. Raises OSError, FileNotFoundError where there is none."""
    with os_errors(path):
        _filesystem().get_file(path, str(file))


class Stored(NamedTuple):
    """An object below a path: its name there, its size in bytes, and the CRC-32C that the store keeps of it; -1 where it keeps none."""

    name: str
    size: int
    checksum: int


def stored(path: epath.Path) -> list[Stored]:
    """All objects below a path, in the order of their names, by several requests at once that the store answers with 1,000 objects each.

    Raises OSError where the bucket cannot be listed, FileNotFoundError where there is no such bucket.
    """
    bucket, _, name = os.fspath(path).removeprefix("gs://").partition("/")
    start = f"{name}/" if name else ""
    options = {"prefix": start, "fields": "items(name,size,crc32c),nextPageToken"}

    def page(begin: str, end: str | None, token: str | None) -> tuple[list[Stored], str | None]:
        bounds = {"startOffset": start + begin if begin else None, "endOffset": end and start + end}
        answer = _filesystem().call("GET", "b/{}/o", bucket, json_out=True, pageToken=token, **options, **bounds)
        items = [
            Stored(item["name"].removeprefix(start), int(item["size"]), _number(item.get("crc32c"))) for item in answer.get("items", ())
        ]
        return items, answer.get("nextPageToken")

    try:
        with os_errors(path):
            objects = ranges.listed(page, _LISTINGS)
    except FileNotFoundError as error:
        raise _no_bucket(os.fspath(path)) from error
    return sorted(item for item in objects if item.name and not item.name.endswith("/"))  # without folders that a console made


def _number(checksum: str | None) -> int:
    return int.from_bytes(base64.b64decode(checksum), "big") if checksum else -1


def checksum(data: bytes, before: int = 0) -> int:
    """The CRC-32C of bytes, as the store keeps it; of bytes that follow others whose checksum is `before`."""
    import google_crc32c

    return google_crc32c.extend(before, data)


@functools.cache
def scratch_directory() -> Path:
    """A directory on this machine for files that are copied elsewhere once they are whole; it is removed when the program ends."""
    import atexit

    directory = Path(tempfile.mkdtemp(prefix="sere-jax-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


def _filesystem() -> Any:
    import fsspec

    _set_up()
    return fsspec.filesystem("gcs", finalize_on_close=True)  # the instance that epath uses
