"""A checkpoint on disk: what it holds, which of them is the newest, and reading one with every bit verified.

`DIRECTORY/STEP/` holds `state` (the arrays, as a nested dict of the state's field and key names) and `meta` (JSON: config,
identity, step, versions, and of each leaf dtype, shape and digest). The position in the data is the step itself.
Orbax writes and reads the bytes. It does not notice when they change on disk, so the digests here do.
`checkpoint_manager.Checkpoints` saves and resumes; it uses the same functions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from sere_jax.train.digest import digests
from sere_jax.train.disk import brief
from sere_jax.train.saved_steps import CheckpointError as CheckpointError  # the names of a checkpoint are all found here
from sere_jax.train.saved_steps import DamagedCheckpoint as DamagedCheckpoint
from sere_jax.train.saved_steps import Directory as Directory
from sere_jax.train.saved_steps import IncompleteCheckpoint as IncompleteCheckpoint
from sere_jax.train.saved_steps import RenamedCheckpoint as RenamedCheckpoint
from sere_jax.train.saved_steps import UnsoundState as UnsoundState
from sere_jax.train.saved_steps import UnwritableCheckpoint as UnwritableCheckpoint
from sere_jax.train.saved_steps import check_complete as check_complete
from sere_jax.train.saved_steps import complete_steps as complete_steps
from sere_jax.train.saved_steps import damaged as damaged
from sere_jax.train.saved_steps import find_step as find_step
from sere_jax.train.saved_steps import holds as holds
from sere_jax.train.saved_steps import is_below as is_below
from sere_jax.train.saved_steps import listed as listed
from sere_jax.train.saved_steps import read_config as read_config
from sere_jax.train.saved_steps import read_meta as read_meta
from sere_jax.train.saved_steps import reading as reading
from sere_jax.train.saved_steps import step_directories as step_directories
from sere_jax.train.saved_steps import steps_if_readable as steps_if_readable

PyTree = Any


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
    if unknown := [path for path in only if not any(is_below(name, path) for name in leaves)]:
        fields = sorted({name.split("/")[0] for name in leaves})
        raise CheckpointError(f"{root / str(step)}: found no {', '.join(unknown)}; expected paths below {', '.join(fields)}")
    wanted = {name: leaf for name, leaf in leaves.items() if not only or any(is_below(name, path) for path in only)}
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
        raise damaged(root, step, f"its arrays cannot be read ({_fault(root / str(step) / 'state', error)})") from error
    if wrong := [name for name in stored if readable.get(name) != leaves[name][:2]]:
        raise damaged(root, step, f"of another type or shape than was written: {listed(wrong)}")
    return arrays


def _local_reader() -> ocp.Checkpointer:
    """Reading has no need of the other processes. With Orbax's default a process that fails leaves the others waiting."""
    index = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"read{index}")
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(multiprocessing_options=alone), multiprocessing_options=alone)


def _fault(state_directory: epath.Path, error: Exception) -> str:
    """What is wrong with the files of a state, in a few words. Errors on the list of its arrays do not name it."""
    path = state_directory / "_METADATA"
    try:
        json.loads(path.read_text() if path.exists() else "{}")  # Orbax reads without it too
    except (ValueError, RecursionError):
        return f"{path} is no JSON"
    return brief(error)


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
        raise damaged(root, step, f"not what was written: {listed(wrong)} ({len(wrong)} of {len(read)} leaves)")


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
