"""The checkpoints of a run: saved in the background, pruned, and resumed from the newest that is sound."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, EveryNSteps, LatestN

from sere_jax.distributed import OtherProcessError
from sere_jax.train import checkpoint, peers, stacking
from sere_jax.train.checkpoint import (
    CheckpointError,
    DamagedCheckpoint,
    Directory,
    IncompleteCheckpoint,
    RenamedCheckpoint,
    UnsoundState,
    UnwritableCheckpoint,
    listed,
)
from sere_jax.train.digest import digests
from sere_jax.train.disk import Watched, brief, cause, free_names, remove_unfinished
from sere_jax.train.finite import unsound_leaves
from sere_jax.train.goodput import Goodput
from sere_jax.train.saved_steps import json_digest
from sere_jax.train.scores import Best, BestStep, Scores
from sere_jax.train.versions import versions
from sere_jax.writing import place

PyTree = Any


class Restored(NamedTuple):
    """A state that was read, and its step."""

    state: PyTree
    step: int


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, which leaves preemption to `train.signals`."""

    def reached_preemption(self, step: int) -> bool:
        # Orbax would ask JAX with the training step, and `Signals.reached` counts its own calls. JAX compares them for equality, so that
        # a signal during a save would be agreed on for a number that never comes.
        return False


class Checkpoints:
    """The checkpoints of one run, to write and to resume from. Use it in a `with`; every process makes one and calls it alike.

    Nothing is written before the first `save`; that also makes the directory and removes what killed saves left.

    Args:
      directory: the directory of the steps (WORKDIR/checkpoints).
      every_steps: the cadence by which `should_save` answers; 0 = only when forced.
      keep: how many of the newest steps stay.
      keep_every_steps: steps divisible by it stay for good; 0 = none do.
      best: the score by which the best step stays too; None = none does.
      strict: refuse to resume where a directory would be set aside.

    Attributes:
      notes: what was set aside so far, as sentences.
      scores, goodput: the evaluations done so far, and the account of the run's time.
    """

    def __init__(
        self,
        directory: Directory,
        *,
        every_steps: int,
        keep: int = 2,
        keep_every_steps: int = 0,
        best: Best | None = None,
        strict: bool = False,
    ) -> None:
        self.directory = epath.Path(place(directory))
        self.notes: list[str] = []
        self.scores = Scores(self.directory, best)
        self.goodput = Goodput(self.directory)
        self._every_steps, self._strict = every_steps, strict
        self._workdir = Watched(self.directory.parent)
        self._rejected: dict[int, DamagedCheckpoint] = {}  # damage that was found while the arrays were read
        self._policies: list[Any] = [LatestN(keep)]
        if keep_every_steps:
            self._policies.append(EveryNSteps(keep_every_steps))
        if best is not None:
            self._policies.append(BestStep(self.scores))

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        elif kind is not KeyboardInterrupt:  # the error under way is the one to report; an interrupt waits for nothing
            with contextlib.suppress(CheckpointError):
                self.close()
            if jax.process_index() == 0:
                remove_unfinished(self.directory)  # of a save that failed at once, while a thread of it still made directories

    @functools.cached_property
    def _manager(self) -> _Manager:
        options = ocp.CheckpointManagerOptions(cleanup_tmp_directories=True, preservation_policy=AnyPreservationPolicy(self._policies))
        return _Manager(self.directory, options=options)

    def newest(self) -> int | None:
        """The newest step whose description is sound, or None where there never was a checkpoint.

        Newer directories are set aside, and `notes` says so: `STEP.damaged`, `STEP.renamed`, `STEP.incomplete`. The arrays
        are verified by `restore_newest` only. With several processes the first one decides.

        Raises:
          CheckpointError: every checkpoint is damaged; the directory cannot be read; or `strict` forbids to set something aside.
          OtherProcessError: one of these, on processes other than the first.
        """
        error: Exception | None = None
        step = -1
        if jax.process_index() == 0:
            try:
                with checkpoint.reading(self.directory):
                    step = self._survey()
            except Exception as caught:  # whatever it is: the other processes wait for an answer
                error = caught
        step, failed = _from_first_process(step, error is not None)
        if failed:
            raise error or OtherProcessError(f"process 0 finds no checkpoint in {self.directory} to resume from; its output says why")
        return None if step < 0 else step

    def restore_newest(self, abstract_state: PyTree) -> Restored | None:
        """Restore the newest step of which every bit is right, or None where there never was a checkpoint. As `newest` otherwise."""
        while (step := self.newest()) is not None:
            try:
                return Restored(self.restore(abstract_state, step), step)
            except DamagedCheckpoint as error:
                self._rejected[step] = error
        return None

    def should_save(self, step: int) -> bool:
        """Whether a checkpoint of this step is due."""
        return self._every_steps > 0 and step > 0 and step % self._every_steps == 0

    def save(
        self, step: int, state: PyTree, config: Mapping[str, Any], force: bool = False, identity: Mapping[str, Any] | None = None
    ) -> bool:
        """Begin to save; False when neither the cadence nor `force` asks for it, or the step has been saved.

        Returns as soon as the arrays are copied: the caller may donate them. A state that is not finite raises UnsoundState. An error of
        writing in the background (`UnwritableCheckpoint`, as from a full disk) is raised by the next `save`, `wait` or `close`.

        `config` and `identity` are JSON-able: what `read_config` returns, and what the run was trained on.
        """
        if not (force or self.should_save(step)):
            return False
        with self._failing_clearly():
            self._workdir.check()
            if step in self._manager.all_steps():
                return False
        named = checkpoint.named_leaves(state)
        if unsound := unsound_leaves(named):
            raise UnsoundState(f"step {step} is not saved: found values that are NaN, infinite or above 1e19 in {listed(unsound)}")
        values = digests(named)
        leaves = {name: [str(leaf.dtype), list(leaf.shape), value] for (name, leaf), value in zip(named.items(), values, strict=True)}
        meta = {"step": step, "config": dict(config), "identity": dict(identity or {}), "versions": versions(), "leaves": leaves}
        meta["digest"] = json_digest(meta)
        arrays = checkpoint.nested({name: leaf for name, leaf in named.items() if leaf.size})  # Orbax refuses arrays without elements
        with self._failing_clearly():
            args = ocp.args.Composite(state=ocp.args.StandardSave(arrays), meta=ocp.args.JsonSave(meta))
            self._manager.save(step, args=args, force=True)
        return True

    def restore(self, abstract_state: PyTree, step: int) -> PyTree:
        """Read a step into the structure, dtypes and shardings of `abstract_state`, and verify it.

        Blocks that were saved one by one may be wanted stacked (`scan_blocks`), and the reverse.

        The leaves of `abstract_state` are `jax.ShapeDtypeStruct`; one without a sharding goes to the first local device.
        The devices and processes may be other ones, and another number, than when it was saved.

        Raises:
          CheckpointError: no such step; another structure, shape or dtype (every difference is listed).
          DamagedCheckpoint: the message names the leaves. With several processes all raise the same.
        """
        wanted = checkpoint.named_leaves(abstract_state)
        default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        targets = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding or default) for name, leaf in wanted.items()}
        leaves: Mapping[str, Any] = {}
        stored: dict[str, jax.ShapeDtypeStruct] = {}
        arrays: dict[str, Any] = {}
        with self._agreeing(step):
            root, step = checkpoint.find_step(self.directory, step)
            leaves = checkpoint.read_meta(root, step)["leaves"]
            stored = stacking.stored(targets, leaves)
            checkpoint.check_same(stored, leaves, root / str(step))
            arrays = checkpoint.read_arrays(root, step, leaves, {name: _restore_args(leaf) for name, leaf in stored.items()})
        checkpoint.verify(self.directory, step, leaves, arrays)
        empty = {
            name: jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding) for name, leaf in stored.items() if not leaf.size
        }  # not stored
        named = stacking.arranged(arrays | empty, targets)
        return jax.tree.unflatten(jax.tree.structure(abstract_state), [named[name] for name in wanted])

    def wait(self) -> None:
        """Wait until the last save is on disk; raise its error if it had one."""
        if "_manager" in vars(self):
            with self._failing_clearly():
                self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait for the last save and let go of the directory."""
        manager = vars(self).pop("_manager", None)
        if manager is not None:
            with self._failing_clearly():
                manager.close()

    def _survey(self) -> int:
        """The newest sound step, -1 where there is none, after setting aside what is newer. For process 0 alone."""
        for step in reversed(checkpoint.step_directories(self.directory)):
            path = self.directory / str(step)
            try:
                checkpoint.check_complete(path)
                if step in self._rejected:
                    raise self._rejected.pop(step)
                checkpoint.read_meta(self.directory, step)
                return step
            except DamagedCheckpoint as error:
                # The last one stays: without it the run would begin again at step 0 without a word.
                if not [other for other in checkpoint.complete_steps(self.directory) if other < step]:
                    raise CheckpointError(f"{error}. Move it away to begin again at step 0") from error
                self._set_aside(path, "damaged", error)
            except RenamedCheckpoint as error:
                self._set_aside(path, "renamed", error)
            except IncompleteCheckpoint as error:
                self._set_aside(path, "incomplete", error)
        return -1

    def _set_aside(self, path: epath.Path, kind: str, error: CheckpointError) -> None:
        """Rename a directory so that it counts as a step no more. Raise `error` in strict mode."""
        if self._strict:
            raise CheckpointError(f"{error}. Nothing is set aside, because run.strict_restore is True") from error
        target = next(free_names(path.with_name(f"{path.name}.{kind}")))
        try:
            path.rename(target)
        except OSError as failure:
            raise CheckpointError(f"{error}. It could not be set aside: {brief(failure)}") from failure
        self.notes.append(f"{error}. It was set aside as {target}")

    @contextlib.contextmanager
    def _agreeing(self, step: int) -> Iterator[None]:
        """Raise on every process if one raises: the others would wait for it for ever. OSError becomes CheckpointError.

        The others raise DamagedCheckpoint if all that went wrong is damage, else OtherProcessError.
        """
        error: Exception | None = None
        try:
            with checkpoint.reading(self.directory):
                yield
        except Exception as caught:
            error = caught
        if jax.process_count() > 1:
            severity = 0 if error is None else 1 if isinstance(error, DamagedCheckpoint) else 2
            everywhere = np.asarray(multihost_utils.process_allgather(np.int32(severity)))
            if (worst := int(everywhere.max())) > severity:
                kind = DamagedCheckpoint if worst == 1 else OtherProcessError
                error = kind(f"the checkpoint of step {step} in {self.directory} cannot be read by process {int(everywhere.argmax())}")
        if error is not None:
            raise error

    @contextlib.contextmanager
    def _failing_clearly(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever Orbax and TensorStore raise: a full disk, a lost mount
            steps = listed(checkpoint.steps_if_readable(self.directory)) or "none"
            if jax.process_index() == 0:
                remove_unfinished(self.directory)
            text = f"a checkpoint in {self.directory} could not be written: {cause(error)}; complete steps: {steps}"
            raise peers.announced(UnwritableCheckpoint(text)) from error


def _restore_args(leaf: jax.ShapeDtypeStruct) -> ocp.ArrayRestoreArgs:
    return ocp.ArrayRestoreArgs(restore_type=jax.Array, sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype)


def _from_first_process(step: int, failed: bool) -> tuple[int, bool]:
    """What process 0 decided, on every process."""
    if jax.process_count() > 1:
        agreed = multihost_utils.broadcast_one_to_all(np.array([step, failed], np.int32))
        step, failed = int(agreed[0]), bool(agreed[1])
    return step, failed
