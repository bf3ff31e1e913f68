"""The saved steps in a directory: which of them are complete, which is the newest, and their verified descriptions. Imports no JAX.

What `DIRECTORY/STEP/` holds is said in `checkpoint`, which reads the arrays and has the names of this module too.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from etils import epath

from sere_jax import buckets
from sere_jax.train.disk import brief
from sere_jax.writing import place

Directory: TypeAlias = str | os.PathLike[str]

_SHOWN = 20  # items listed by an error; two different networks differ in thousands of leaves
_log = logging.getLogger(__name__)
_warn_once = functools.cache(_log.warning)  # a program looks for the newest step several times


class CheckpointError(RuntimeError):
    """A checkpoint is missing, cannot be read or written, or is not of the state that is wanted."""


class UnwritableCheckpoint(CheckpointError):
    """A checkpoint could not be written; those that were complete stand."""


class UnsoundState(UnwritableCheckpoint):
    """A state with values that are not finite, or far too large, is not saved."""


class DamagedCheckpoint(CheckpointError):
    """The bytes of a checkpoint are not those that were written."""


class RenamedCheckpoint(CheckpointError):
    """The directory of a checkpoint has another number than the step in it."""


class IncompleteCheckpoint(CheckpointError):
    """A directory with a step's number that no save ended in, or whose deletion began."""


def read_config(directory: Directory, step: int | None = None) -> dict[str, Any]:
    """The config that was saved with a step (the newest by default). `directory` as in `read_state`."""
    return read_meta(*find_step(directory, step))["config"]


def holds(directory: Directory, path: str, step: int | None = None) -> bool:
    """Whether a saved step (the newest by default) holds a leaf at a path such as `method/teacher`, or below it."""
    return any(is_below(name, path) for name in read_meta(*find_step(directory, step))["leaves"])


def is_below(name: str, path: str) -> bool:
    """Whether the path of a leaf is `path`, or below it."""
    return f"{name}/".startswith(f"{path}/")


def find_step(directory: Directory, step: int | None = None) -> tuple[epath.Path, int]:
    """The directory of the steps and the step to read: `step`, or the newest. `directory` as in `read_state`.

    Renamed and incomplete steps are skipped with a warning.

    Raises:
      CheckpointError: there is none, and the message lists what was found instead; or the directory cannot be read.
    """
    if mistake := buckets.address_mistake(os.fspath(directory)):
        raise CheckpointError(f"{os.fspath(directory)} cannot be read: {mistake}")
    path = epath.Path(place(directory))
    with reading(path):
        root = path / "checkpoints" if (path / "checkpoints").is_dir() else path
        if step is None and _is_step_name(path.name) and (is_complete(path) or (complete_steps(path.parent) and not complete_steps(root))):
            root, step = path.parent, int(path.name)
        steps = complete_steps(root)
        if not steps:
            raise CheckpointError(f"no checkpoint in {path}: {_contents(root)}; expected STEP/state and STEP/meta, in it or 'checkpoints'")
        if step is None:
            return root, _newest(root)
        if step in steps:
            return root, step
        if (root / str(step)).exists():
            check_complete(root / str(step), f"; there are {listed(steps)}")
        raise CheckpointError(f"no checkpoint of step {step} in {root}; there are {listed(steps)}")


def _newest(root: epath.Path) -> int:
    """The newest step that is complete and has the number of its directory; others are told once."""
    for step in reversed(step_directories(root)):
        try:
            check_complete(root / str(step))
            read_meta(root, step)
        except (IncompleteCheckpoint, RenamedCheckpoint) as error:
            _warn_once("skipped: %s", str(error))
        else:
            return step
    raise CheckpointError(f"no checkpoint in {root} has the number of its step; there are {listed(complete_steps(root))}")


@contextlib.contextmanager
def reading(directory: Directory) -> Iterator[None]:
    """Turn what the file system or the bucket refuses during the block into CheckpointError."""
    try:
        with buckets.os_errors(directory):
            yield
    except OSError as error:
        raise CheckpointError(f"{os.fspath(directory)} cannot be read: {brief(error)}") from error


def complete_steps(root: epath.Path) -> list[int]:
    """The steps whose end mark is there, oldest first. A killed save leaves a number without it, and so does a killed deletion."""
    return [step for step in step_directories(root) if is_complete(root / str(step))]


def steps_if_readable(root: epath.Path) -> list[int]:
    """The complete steps; none where the directory cannot be listed, because its mount is gone."""
    with contextlib.suppress(*buckets.failures()):
        return complete_steps(root)
    return []


def step_directories(root: epath.Path) -> list[int]:
    """The numbers among the names in a directory, in order, whatever is behind them."""
    return sorted(int(path.name) for path in root.iterdir() if _is_step_name(path.name)) if root.is_dir() else []


def is_complete(step_directory: epath.Path) -> bool:
    """Whether a save ended here, and no deletion began."""
    return _meta_path(step_directory).exists() and (step_directory / "commit_success.txt").exists()


def check_complete(step_directory: epath.Path, advice: str = "") -> None:
    """Raise IncompleteCheckpoint, with `advice` at its end, unless a save ended here and no deletion began."""
    if not is_complete(step_directory):
        raise IncompleteCheckpoint(f"{step_directory} is no complete checkpoint: it lacks its description or its end mark{advice}")


def _is_step_name(name: str) -> bool:
    return name.isascii() and name.isdigit() and name == str(int(name))


def _contents(path: epath.Path) -> str:
    if not path.exists():
        return "it does not exist"
    if not path.is_dir():
        return "it is a file"
    return f"found {listed(sorted(child.name for child in path.iterdir())) or 'an empty directory'}"


def _meta_path(step_directory: epath.Path) -> epath.Path:
    return step_directory / "meta" / "metadata"


def read_meta(root: epath.Path, step: int) -> dict[str, Any]:
    """The description of a step, verified.

    Raises:
      CheckpointError: the file system does not let it be read.
      DamagedCheckpoint, RenamedCheckpoint: as they say.
    """
    path = _meta_path(root / str(step))
    with reading(path):
        data = path.read_bytes()
    try:
        meta = json.loads(data)
        sound = meta.pop("digest") == json_digest(meta)
    except Exception as error:  # damaged JSON can be any value, nested however deep
        raise damaged(root, step, f"{path} cannot be read ({brief(error)})") from error
    if not sound:
        raise damaged(root, step, f"{path} is not what was written")
    if meta["step"] != step:
        raise RenamedCheckpoint(f"{root / str(step)} holds step {meta['step']}: it was renamed or copied")
    return meta


def damaged(root: epath.Path, step: int, what: str) -> DamagedCheckpoint:
    """The error of a damaged step, which names the other steps."""
    others = [other for other in steps_if_readable(root) if other != step]
    advice = f"other steps here: {listed(others)}, such as {root / str(others[-1])}" if others else "no other step is here"
    return DamagedCheckpoint(f"the checkpoint of step {step} in {root} is damaged: {what}; {advice}")


def json_digest(meta: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON object, the same before it is written and after it is read."""
    plain = json.loads(json.dumps(meta))  # tuples become lists, keys strings, as they will when read
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def listed(items: Iterable[Any], separator: str = ", ") -> str:
    """The first 20 items as text, and how many more there are."""
    words = [str(item) for item in items]
    return separator.join(words[:_SHOWN] + ([f"... and {len(words) - _SHOWN} more"] if len(words) > _SHOWN else []))
