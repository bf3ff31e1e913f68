"""A checkpoint on disk: what it holds, which of them is the newest, and reading one with every bit verified.

`DIRECTORY/STEP/` holds `state` (the arrays, as a nested dict of the state's field and key names) and `meta` (JSON: config,
identity, step, versions, and of each leaf dtype, shape and digest). The position in the data is the step itself.
Orbax writes and reads the bytes. It does not notice when they change on disk, so the digests here do.
`checkpoint_manager.Checkpoints` saves and resumes; it uses the same functions.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from sere_jax import buckets
from sere_jax.train.digest import digests, json_digest
from sere_jax.train.disk import brief
from sere_jax.writing import place

PyTree = Any
Directory: TypeAlias = str | os.PathLike[str]

_SHOWN = 20  # differences listed by an error; two different networks have thousands
_log = logging.getLogger(__name__)
_warn_once = functools.cache(_log.warning)  # a program looks for the newest step several times


class CheckpointError(RuntimeError):
    """A checkpoint is missing, cannot be read or written, or is not of the state that is wanted."""


class UnwritableCheckpoint(CheckpointError):
    """A checkpoint could not be written; those that were complete stand."""


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
    return any(_is_below(name, path) for name in read_meta(*find_step(directory, step))["leaves"])


def _is_below(name: str, path: str) -> bool:
    return f"{name}/".startswith(f"{path}/")


def read_state(directory: Directory, step: int | None = None, only: Sequence[str] = ()) -> tuple[dict[str, Any], int]:
    """A saved state as a nested dict of NumPy arrays, and its step. Needs no target and works on any machine.

    NamedTuple fields, dict keys and positions are the keys: `state['opt_state']['0']['mu'][...]`.

    Args:
      directory: a run's workdir, its `checkpoints` directory, or one step in there.
      step: the newest by default.
      only: paths to read, `('params', 'method/teacher')`, each with what is below it; all by default. Nothing else is read from disk.

    Raises:
      CheckpointError: no checkpoint there (the message lists what is); a path in `only` is not in it.
      DamagedCheckpoint: the message names the leaves.
    """
    root, step = find_step(directory, step)
    leaves = read_meta(root, step)["leaves"]
    if unknown := [path for path in only if not any(_is_below(name, path) for name in leaves)]:
        fields = sorted({name.split("/")[0] for name in leaves})
        raise CheckpointError(f"{root / str(step)}: found no {', '.join(unknown)}; expected paths below {', '.join(fields)}")
    wanted = {name: leaf for name, leaf in leaves.items() if not only or any(_is_below(name, path) for path in only)}
    arrays = read_arrays(root, step, wanted, {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in wanted})
    verify(root, step, wanted, arrays)
    empty = {name: np.zeros(shape, jnp.dtype(dtype)) for name, (dtype, shape, _) in wanted.items() if 0 in shape}
    return nested(arrays | empty), step


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """Leaves by path, such as `opt_state/0/mu/backbone/norm/scale`: field names, dict keys and positions.

    Raises:
      ValueError: two leaves have the same path, since a key contains a slash.
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    if len(named) != len(leaves):
        raise ValueError("two leaves of the state have the same path: a key contains '/'")
    return named


def nested(named: Mapping[str, Any]) -> dict[str, Any]:
    """Turn paths into a nested dict.

    >>> nested({"a/b": 1, "a/c": 2})
    {'a': {'b': 1, 'c': 2}}
    """
    tree: dict[str, Any] = {}
    for name, leaf in named.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def find_step(directory: Directory, step: int | None = None) -> tuple[epath.Path, int]:
    """The directory of the steps and the step to read: `step`, or the newest. `directory` as in `read_state`.

    A renamed step is skipped with a warning.

    Raises:
      CheckpointError: there is none, and the message lists what was found instead; or the directory cannot be read.
    """
    if mistake := buckets.address_mistake(os.fspath(directory)):
        raise CheckpointError(f"{os.fspath(directory)} cannot be read: {mistake}")
    path = epath.Path(place(directory))
    with reading(path):
        root = path / "checkpoints" if (path / "checkpoints").is_dir() else path
        if step is None and _is_step_name(path.name) and (path / "meta").is_dir():
            root, step = path.parent, int(path.name)
        steps = complete_steps(root)
        if not steps:
            raise CheckpointError(f"no checkpoint in {path}: {_contents(root)}; expected STEP/state and STEP/meta, in it or 'checkpoints'")
        if step is not None:
            if step not in steps:
                raise CheckpointError(f"no checkpoint of step {step} in {root}; there are {listed(steps)}")
            return root, step
        for newest in reversed(steps):
            try:
                read_meta(root, newest)
            except RenamedCheckpoint as error:
                _warn_once("skipped: %s", str(error))
            else:
                return root, newest
        raise CheckpointError(f"no checkpoint in {root} has the number of its step; there are {listed(steps)}")


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
        raise _damaged(root, step, f"{path} cannot be read ({brief(error)})") from error
    if not sound:
        raise _damaged(root, step, f"{path} is not what was written")
    if meta["step"] != step:
        raise RenamedCheckpoint(f"{root / str(step)} holds step {meta['step']}: it was renamed or copied")
    return meta


def read_arrays(root: epath.Path, step: int, leaves: Mapping[str, Any], args: Mapping[str, ocp.RestoreArgs]) -> dict[str, Any]:
    """Read the leaves that have elements, not yet verified. Waits for no other process.

    Raises:
      DamagedCheckpoint: they cannot be decoded, or are not the arrays that `leaves` describes.
      CheckpointError: the file system or the device does not let them be read.
    """
    stored = {name: arg for name, arg in args.items() if 0 not in leaves[name][1]}
    if not stored:
        return {}
    try:
        tree = nested(stored)
        restore = ocp.args.PyTreeRestore(item=tree, restore_args=tree, partial_restore=True)
        arrays = named_leaves(_local_reader().restore(root / str(step) / "state", args=restore))
        readable = {name: [str(leaf.dtype), list(leaf.shape)] for name, leaf in arrays.items()}
    except (MemoryError, jax.errors.JaxRuntimeError) as error:  # the device's memory, for one: no fault of the file
        raise CheckpointError(f"the checkpoint of step {step} in {root} cannot be restored: {brief(error)}") from error
    except Exception as error:  # Orbax and TensorStore raise anything on bytes that they cannot decode
        _check_readable(root / str(step))
        raise _damaged(root, step, f"its arrays cannot be read ({brief(error)})") from error
    if wrong := [name for name in stored if readable.get(name) != leaves[name][:2]]:
        raise _damaged(root, step, f"of another type or shape than was written: {listed(wrong)}")
    return arrays


def _local_reader() -> ocp.Checkpointer:
    """Reading has no need of the other processes. With Orbax's default a process that fails leaves the others waiting."""
    index = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"read{index}")
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(multiprocessing_options=alone), multiprocessing_options=alone)


def _check_readable(step_directory: epath.Path) -> None:
    """Raise CheckpointError where the file system, not the content, is why a checkpoint cannot be read."""
    with reading(step_directory):
        for directory, _, names in step_directory.walk():
            for name in names:
                with (directory / name).open("rb") as file:
                    while file.read(1 << 24):
                        pass


def verify(root: epath.Path, step: int, leaves: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    """Hold the digests of the arrays against the saved ones. Every process calls this alike. Raises DamagedCheckpoint."""
    read = dict(zip(arrays, digests(arrays), strict=True))
    if wrong := [name for name, value in read.items() if value != leaves[name][2]]:
        raise _damaged(root, step, f"not what was written: {listed(wrong)} ({len(wrong)} of {len(read)} leaves)")


def _damaged(root: epath.Path, step: int, what: str) -> DamagedCheckpoint:
    others = [other for other in steps_if_readable(root) if other != step]
    advice = f"other steps here: {listed(others)}, such as {root / str(others[-1])}" if others else "no other step is here"
    return DamagedCheckpoint(f"the checkpoint of step {step} in {root} is damaged: {what}; {advice}")


def check_same(wanted: Mapping[str, Any], saved: Mapping[str, Any], path: epath.Path) -> None:
    """Raise CheckpointError with all differences in names, types and shapes between wanted and saved leaves."""
    differences = [f"{name}: saved, but not wanted" for name in saved if name not in wanted]
    differences += [f"{name}: wanted, but not saved" for name in wanted if name not in saved]
    for name in wanted.keys() & saved.keys():
        have = (saved[name][0], tuple(saved[name][1]))
        want = (str(wanted[name].dtype), tuple(wanted[name].shape))
        if have != want:
            differences.append(f"{name}: saved {have[0]}{list(have[1])}, wanted {want[0]}{list(want[1])}")
    if differences:
        raise CheckpointError(f"{path} is of another state ({len(differences)} differences):\n  " + listed(sorted(differences), "\n  "))


def listed(items: Iterable[Any], separator: str = ", ") -> str:
    """The first 20 items as text, and how many more there are."""
    words = [str(item) for item in items]
    return separator.join(words[:_SHOWN] + ([f"... and {len(words) - _SHOWN} more"] if len(words) > _SHOWN else []))
