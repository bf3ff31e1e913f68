"""Runs in a bucket for what reads workdirs on a disk: the few files that it reads are copied to this machine."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from etils import epath

from sere_jax import buckets
from sere_jax.buckets import Location
from sere_jax.reporting import records
from sere_jax.reporting.workdir import DEPTH, PRUNED, Run, read_run, runs_below

_READ = re.compile(r"(config|launch|data)\.json|\.lock|metrics(-\d{12})?\.jsonl|eval/[^/]+\.json|eval/launches/[^/]+\.json")
_FIGURE = re.compile(r"figures/[^/]+\.png")
_THREADS = 16  # requests at once


def read(directory: Location, name: str = "", *, figures: bool = True) -> Run:
    """`workdir.read_run` of a workdir on a disk or in a bucket.

    The `directory` of a run in a bucket is a copy of some files, which is removed when the program ends.

    Raises:
      FileNotFoundError: there is nothing to report.
      OSError: the bucket cannot be read.
    """
    if not isinstance(directory, epath.Path):
        return read_run(directory, name)
    names = _names(directory)
    return _read(directory, [file for file in names if _READ.fullmatch(file) or (figures and _FIGURE.fullmatch(file))], name)


def below(directory: Location) -> Iterator[tuple[str, Run]]:
    """The runs of `workdir.runs_below`, on a disk or in a bucket, each with its path below the directory, without their figures.

    Raises OSError where the bucket cannot be read.
    """
    if not isinstance(directory, epath.Path):
        for workdir in runs_below(directory):
            with contextlib.suppress(FileNotFoundError):  # deleted since it was found
                yield (str(workdir.relative_to(directory)) if workdir != directory else workdir.name), read_run(workdir)
        return
    names = _names(directory)
    for start in sorted(_starts(names)):
        files = [name.removeprefix(start) for name in names if name.startswith(start)]
        workdir = directory / start if start else directory
        yield start.rstrip("/") or directory.name, _read(workdir, [file for file in files if _READ.fullmatch(file)], "")


def _names(directory: epath.Path) -> list[str]:
    with _told(directory):
        return [item.name for item in buckets.stored(directory)]


@contextlib.contextmanager
def _told(address: epath.Path) -> Iterator[None]:
    """Name the address in an OSError of the block."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{address} cannot be read: {error.strerror or ' '.join(str(error).split())}") from error


def _starts(names: list[str]) -> Iterator[str]:
    """How the names of the files of each run begin."""
    stored = set(names)
    for name in names:
        start = name.removesuffix("config.json")
        folders = start.split("/")[:-1]
        if start == name or (start and not start.endswith("/")) or f"{start}metrics.jsonl" not in stored:
            continue
        if len(folders) <= DEPTH and not any(folder in PRUNED or folder.startswith(".") for folder in folders):
            yield start


def _read(address: epath.Path, files: list[str], name: str) -> Run:
    copy = buckets.scratch_directory() / hashlib.sha256(os.fspath(address).encode()).hexdigest()[:16] / address.name
    for file in files:
        (copy / file).parent.mkdir(parents=True, exist_ok=True)
    with _told(address), ThreadPoolExecutor(_THREADS) as threads:
        list(threads.map(lambda file: _get(address, file, copy), files))
    _date(copy)
    try:
        run = read_run(copy, name)
    except FileNotFoundError as error:
        raise FileNotFoundError(str(error).replace(str(copy), os.fspath(address))) from None
    return run._replace(unreadable=tuple(line.replace(str(copy), os.fspath(address)) for line in run.unreadable))


def _get(address: epath.Path, file: str, copy: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # a part that was joined since it was listed
        buckets.get(f"{os.fspath(address)}/{file}", copy / file)


def _date(copy: Path) -> None:
    """Give metrics.jsonl the time of its last line: a run's state says how long ago that was."""
    with contextlib.suppress(ValueError, TypeError):  # damaged lines: the time of the copy stays
        newest = max(float(line["time"]) for line in records.read(copy) if "time" in line)
        for path in copy.glob("metrics*.jsonl"):
            os.utime(path, (newest, newest))
