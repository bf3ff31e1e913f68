"""What a path that is given as a checkpoint means: a run, one of its steps, or a file. Imports no JAX: mistakes are told at once."""

from __future__ import annotations

import contextlib
import operator
import os
from collections.abc import Iterator
from typing import Any

from etils import epath

from sere_jax.buckets import Location, address_mistake, is_address, os_errors
from sere_jax.interop.files import READABLE, FileError
from sere_jax.interop.tables import InteropError
from sere_jax.train.saved_steps import CheckpointError, find_step, listed, steps_if_readable
from sere_jax.writing import place

HF_FILE = "model.safetensors"


def mistakes(source: str, step: int | None = None) -> list[str]:
    """Why nothing can be read from a source, as a sentence; none where something is there. Nothing is asked of a bucket.

    Example:
      >>> [sentence] = mistakes("missing.safetensors")
      >>> sentence.endswith("missing.safetensors: no such file")
      True
    """
    if is_address(source):
        return [reason] if (reason := address_mistake(source)) else []
    try:
        step = None if step is None else whole("step", step)
        path = path_of(source)
        if is_run(path, step):
            find_step(path, step)
        elif not path.is_file():
            return [f"{path}: no such file"]
    except (CheckpointError, FileError, InteropError) as error:
        return [str(error)]
    return []


def is_run(path: Location, step: int | None) -> bool:
    """Whether a path is a directory of a run and no file. Raises InteropError for a step of a file."""
    with reading(path):
        directory = path.is_dir()
    if step is not None and not directory:
        raise InteropError(f"{path}: step: found {step}, expected none: a file holds one")
    return directory


def whole(name: str, number: Any) -> int:
    """A whole number of any type but bool. Raises InteropError for anything else, and for a negative one."""
    try:
        if not isinstance(number, bool) and operator.index(number) >= 0:
            return operator.index(number)
    except TypeError:
        pass
    raise InteropError(f"{name}: found {number!r}, expected a whole number of at least 0")


def path_of(source: str | Location) -> Location:
    """The directory of a run or the file that a source means.

    Raises FileError where it is neither, and CheckpointError, which names the steps that are there, for a step that does not exist.
    """
    if not isinstance(source, str | os.PathLike):
        raise FileError(f"source: found {source!r}, expected the path of a run or a file")
    if reason := address_mistake(os.fspath(source)):
        raise FileError(f"{source}: {reason}")
    path = place(source)
    with reading(path):
        if path.is_dir():
            return path / HF_FILE if (path / HF_FILE).is_file() else path
    if not path.name.endswith(READABLE):
        for root in (path.parent, path.parent / "checkpoints"):
            if not path.exists() and (steps := steps_if_readable(epath.Path(root))):
                raise CheckpointError(f"no checkpoint in {path}: it does not exist; the steps in {root} are {listed(steps)}")
        seen = f"found a file that ends in {path.suffix!r}" if path.exists() else "it does not exist"
        raise FileError(f"{path}: expected a workdir, a directory of checkpoints, or a file {' '.join(READABLE)}; {seen}")
    return path


@contextlib.contextmanager
def reading(path: Location) -> Iterator[None]:
    """Turn what the file system or the bucket refuses during the block into FileError."""
    try:
        with os_errors(path):
            yield
    except OSError as error:
        raise FileError(f"{path}: cannot be read: {error.strerror or error}") from error
