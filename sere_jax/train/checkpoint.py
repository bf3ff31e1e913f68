"""Checkpoints: state and config in one step directory, written in the background, verified when read.

On disk `DIRECTORY/STEP/` holds `state` (the arrays, as a nested dict of the state's field and key names) and `meta` (JSON:
config, step, versions, and of each leaf dtype, shape and digest). The position in the data is the step itself.
The bytes are Orbax's affair; that what is read is what was written is checked here, because Orbax does not: one flipped
bit on disk loads without a word.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, EveryNSteps, LatestN

from sere_jax.train.digest import digests

PyTree = Any
Directory: TypeAlias = str | os.PathLike[str]

_SHOWN = 20  # differences shown by an error; two different networks have thousands
_PACKAGES = ("sere_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class CheckpointError(RuntimeError):
    """A checkpoint is missing, damaged, or not of the state that is wanted."""


class Checkpoints:
    """The checkpoints of one run, to write and to resume from. Every process makes one and calls it alike.

    Args:
      directory: the directory of the steps (WORKDIR/checkpoints), made when missing. What a killed save left is removed.
      every_steps: the cadence that `should_save` answers by; 0 = only when forced.
      keep: how many of the newest steps stay.
      keep_every_steps: steps divisible by it stay for good; 0 = none do.
    """

    def __init__(self, directory: Directory, *, every_steps: int, keep: int = 2, keep_every_steps: int = 0) -> None:
        self.directory = epath.Path(directory).expanduser().absolute()
        self._every_steps = every_steps
        keepers: list[Any] = [LatestN(keep)] + ([EveryNSteps(keep_every_steps)] if keep_every_steps else [])
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(cleanup_tmp_directories=True, preservation_policy=AnyPreservationPolicy(keepers)),
        )

    def latest_step(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def should_save(self, step: int) -> bool:
        """Whether the cadence asks for a checkpoint of this step."""
        return self._every_steps > 0 and step > 0 and step % self._every_steps == 0

    def save(self, step: int, state: PyTree, config: Mapping[str, Any], force: bool = False) -> bool:
        """Begin to save; False when neither the cadence nor `force` asks for it, or the step is there already.

        Returns as soon as the arrays are copied, so that the caller may donate them; they are written in the background,
        and an error of that (`CheckpointError`, as from a full disk) is raised by the next `save`, `wait` or `close`.
        """
        if not (force or self.should_save(step)) or step in self._manager.all_steps():
            return False
        named = named_leaves(state)
        values = digests(named)
        leaves = {name: [str(leaf.dtype), list(leaf.shape), value] for (name, leaf), value in zip(named.items(), values, strict=True)}
        meta = {"step": step, "config": dict(config), "versions": _versions(), "leaves": leaves}
        arrays = nested({name: leaf for name, leaf in named.items() if leaf.size})  # Orbax refuses arrays without elements
        args = ocp.args.Composite(state=ocp.args.StandardSave(arrays), meta=ocp.args.JsonSave({**meta, "digest": _json_digest(meta)}))
        with self._failing_clearly():
            self._manager.save(step, args=args, force=True)
        return True

    def restore(self, abstract_state: PyTree, step: int | None = None) -> PyTree:
        """Read a step (the newest by default) into the structure, dtypes and shardings of `abstract_state`, and verify it.

        The leaves of `abstract_state` are `jax.ShapeDtypeStruct`; one without a sharding goes to the first local device.
        The devices and processes may be other ones, and another number, than when it was saved.

        Raises:
          CheckpointError: no such step; another structure, shape or dtype (every difference listed); a damaged leaf (named).
        """
        root, step = find_step(self.directory, step)
        leaves = _read_meta(root, step)["leaves"]
        wanted = named_leaves(abstract_state)
        _check_same(wanted, leaves, root / str(step))
        default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        targets = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding or default) for name, leaf in wanted.items()}
        args = {
            name: ocp.ArrayRestoreArgs(restore_type=jax.Array, sharding=target.sharding, global_shape=target.shape, dtype=target.dtype)
            for name, target in targets.items()
        }
        arrays = _read_arrays(root, step, leaves, args)
        # Orbax holds no arrays without elements; those of the target are as good.
        empty = {name: jnp.zeros(target.shape, target.dtype, device=target.sharding) for name, target in targets.items() if not target.size}
        return jax.tree.unflatten(jax.tree.structure(abstract_state), [(arrays | empty)[name] for name in wanted])

    def wait(self) -> None:
        """Until the last save is on disk; raises what went wrong with it."""
        with self._failing_clearly():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait for the last save and let go of the directory."""
        with self._failing_clearly():
            self._manager.close()

    @contextlib.contextmanager
    def _failing_clearly(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever Orbax and TensorStore raise: a full disk, a lost mount
            there = _listed(_steps(self.directory)) or "none"
            raise CheckpointError(
                f"a checkpoint in {self.directory} could not be written: {_brief(error)}; complete steps: {there}"
            ) from error


def read_config(directory: Directory, step: int | None = None) -> dict[str, Any]:
    """The config that was saved with a step (the newest by default). `directory` as in `read_state`."""
    root, step = find_step(directory, step)
    return _read_meta(root, step)["config"]


def holds(directory: Directory, path: str, step: int | None = None) -> bool:
    """Whether a saved step (the newest by default) holds a leaf at a path such as `method/teacher`, or below it."""
    root, step = find_step(directory, step)
    return any(f"{name}/".startswith(f"{path}/") for name in _read_meta(root, step)["leaves"])


def read_state(directory: Directory, step: int | None = None, only: Sequence[str] = ()) -> tuple[dict[str, Any], int]:
    """A saved state as a nested dict of NumPy arrays, and its step; no target needed, and any machine will do.

    NamedTuple fields, dict keys and positions are the keys: `state['opt_state']['0']['mu'][...]`.

    Args:
      directory: a run's workdir, its `checkpoints` directory, or one step in there.
      step: the newest by default.
      only: paths to read, `('params', 'method/teacher')`, each with what is below it; all by default. The rest is not touched.

    Raises:
      CheckpointError: nothing there (says what was found); a path in `only` is not there; a damaged leaf (named).
    """
    root, step = find_step(directory, step)
    leaves = _read_meta(root, step)["leaves"]
    if unknown := [path for path in only if not any(f"{name}/".startswith(f"{path}/") for name in leaves)]:
        top = sorted({name.split("/")[0] for name in leaves})
        raise CheckpointError(f"{root / str(step)}: found no {', '.join(unknown)}; expected paths below {', '.join(top)}")
    chosen = {name: leaf for name, leaf in leaves.items() if not only or any(f"{name}/".startswith(f"{path}/") for path in only)}
    arrays = _read_arrays(root, step, chosen, {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in chosen})
    empty = {name: np.zeros(shape, jnp.dtype(dtype)) for name, (dtype, shape, _) in chosen.items() if 0 in shape}
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
    """`{'a/b': x}` -> `{'a': {'b': x}}`."""
    tree: dict[str, Any] = {}
    for name, leaf in named.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def find_step(directory: Directory, step: int | None = None) -> tuple[epath.Path, int]:
    """The directory of the steps and the chosen step (the newest by default), from a workdir, `checkpoints` or a step in it.

    Raises:
      CheckpointError: there is none; says what was found instead.
    """
    given = epath.Path(directory).expanduser().absolute()
    root = given / "checkpoints" if (given / "checkpoints").is_dir() else given
    if step is None and given.name.isdigit() and (given / "meta").is_dir():
        root, step = given.parent, int(given.name)
    found = _steps(root)
    if not found:
        raise CheckpointError(f"no checkpoint in {given}: {_seen(root)}; expected STEP/state and STEP/meta, in it or in its 'checkpoints'")
    if step is not None and step not in found:
        raise CheckpointError(f"no checkpoint of step {step} in {root}; there are {_listed(found)}")
    return root, max(found) if step is None else step


def _steps(root: epath.Path) -> list[int]:
    """Complete steps. Orbax marks a step's end with a file; a deletion that was killed midway leaves a number that lacks something."""
    if not root.is_dir():
        return []
    numbers = [path for path in root.iterdir() if path.name.isdigit()]
    return sorted(int(path.name) for path in numbers if _meta_path(path).exists() and (path / "commit_success.txt").exists())


def _seen(path: epath.Path) -> str:
    if not path.exists():
        return "it does not exist"
    if not path.is_dir():
        return "it is a file"
    return f"found {_listed(sorted(child.name for child in path.iterdir())) or 'an empty directory'}"


def _meta_path(step_directory: epath.Path) -> epath.Path:
    return step_directory / "meta" / "metadata"


def _read_meta(root: epath.Path, step: int) -> dict[str, Any]:
    path = _meta_path(root / str(step))
    try:
        meta = json.loads(path.read_text())
        sound = meta.pop("digest") == _json_digest(meta)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise _damaged(root, step, f"{path} cannot be read ({_brief(error)})") from error
    if not sound:
        raise _damaged(root, step, f"{path} is not what was written")
    return meta


def _json_digest(meta: Mapping[str, Any]) -> str:
    plain = json.loads(json.dumps(meta))  # tuples become lists, keys strings, as they will when read
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _read_arrays(root: epath.Path, step: int, leaves: Mapping[str, Any], args: Mapping[str, ocp.RestoreArgs]) -> dict[str, Any]:
    """Read the leaves that have elements, and hold their digests against those saved."""
    stored = nested({name: arg for name, arg in args.items() if 0 not in leaves[name][1]})
    try:
        restore = ocp.args.PyTreeRestore(item=stored, restore_args=stored, partial_restore=True)
        arrays = named_leaves(ocp.PyTreeCheckpointer().restore(root / str(step) / "state", args=restore)) if stored else {}
    except Exception as error:  # whatever Orbax and TensorStore raise on bytes they cannot decode
        raise _damaged(root, step, f"its arrays cannot be read ({_brief(error)})") from error
    found = dict(zip(arrays, digests(arrays), strict=True))
    if wrong := [name for name, value in found.items() if value != leaves[name][2]]:
        raise _damaged(root, step, f"not what was written: {_listed(wrong)} ({len(wrong)} of {len(found)} leaves)")
    return arrays


def _damaged(root: epath.Path, step: int, what: str) -> CheckpointError:
    older = [other for other in _steps(root) if other != step]
    advice = (
        f"other steps here: {_listed(older)}; move {root / str(step)} away to go on from {older[-1]}" if older else "no other step is here"
    )
    return CheckpointError(f"the checkpoint of step {step} is damaged: {what}; {advice}")


def _check_same(wanted: Mapping[str, Any], saved: Mapping[str, Any], path: epath.Path) -> None:
    differences = [f"{name}: saved, but not wanted" for name in saved if name not in wanted]
    differences += [f"{name}: wanted, but not saved" for name in wanted if name not in saved]
    for name in wanted.keys() & saved.keys():
        have = (saved[name][0], tuple(saved[name][1]))
        want = (str(wanted[name].dtype), tuple(wanted[name].shape))
        if have != want:
            differences.append(f"{name}: saved {have[0]}{list(have[1])}, wanted {want[0]}{list(want[1])}")
    if differences:
        raise CheckpointError(f"{path} is of another state ({len(differences)} differences):\n  " + _listed(sorted(differences), "\n  "))


def _listed(items: Iterable[Any], separator: str = ", ") -> str:
    words = [str(item) for item in items]
    return separator.join(words[:_SHOWN] + ([f"... and {len(words) - _SHOWN} more"] if len(words) > _SHOWN else []))


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split())
    if len(text) > 500:  # TensorStore tells its whole configuration, and the cause at the end
        text = f"{text[:240]} ... {text[-240:]}"
    return f"{type(error).__name__}: {text}"


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # a source tree that was not installed
            found[package] = "unknown"
    return found
