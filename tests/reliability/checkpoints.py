"""A campaign on the checkpoints of a real run: damaged, renamed, copied and cut short, then resumed from and read as an export reads."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import jax

from configs import quickstart
from sere_jax import sharding
from sere_jax.build import pretraining
from sere_jax.commands.pretrain import state_parts
from sere_jax.train import checkpoint
from sere_jax.train.checkpoint import CheckpointError
from sere_jax.train.checkpoint_manager import Checkpoints
from tests import micro
from tests.reliability.outcome import Row, Trials
from tests.reliability.runs import SETTINGS, Run, finish_after

_STEPS = (2, 4, 6, 8)
_NEWEST = 0.3  # share of the trials with one change in the newest step alone
_REAL = 50  # one trial in so many is resumed by the real train.py too


def damaged_checkpoints(trials: Trials, rng: random.Random, work: Path) -> Row:
    """Changes in four checkpoints of a run of 8 steps. What is read is right bit by bit, and never older than the newest untouched step."""
    settings = SETTINGS | {"run.checkpoint_every_steps": 2, "run.keep_checkpoints": len(_STEPS)}
    run = Run(work, _STEPS[-1], settings=settings)
    run.whole()
    states = {step: checkpoint.read_state(work / "whole", step)[0] for step in _STEPS}
    target = _target(run)
    for trial in trials:
        name = f"damaged{trial}"
        shutil.copytree(work / "whole", work / name)
        directory = work / name / "checkpoints"
        what, touched = _accidents(directory, rng, newest=rng.random() < _NEWEST)
        untouched = [step for step in _STEPS if step not in touched]
        try:
            _read_as_an_export_does(directory, states)
            if trial % _REAL == 0 and untouched:
                # Whole runs save nothing, and clear nothing up: a temporary directory that a trial laid there would stay.
                shutil.rmtree(directory / "8.orbax-checkpoint-tmp", ignore_errors=True)
                finish_after(run, name, trials.failures)
                trials.ended("resumed by train.py")
            else:
                trials.ended(_resumed(directory, target, states, max(untouched, default=0)))
        except BaseException as error:
            trials.failed(f"{what}: {type(error).__name__}: {str(error)[:300]}")
        shutil.rmtree(work / name)
    return trials.row("changes in the checkpoints of a real run")


def _target(run: Run) -> Any:
    config = quickstart.get_config()
    config.update_from_flattened_dict(run.settings)
    mesh = sharding.make_mesh(1, jax.devices()[:1])
    return state_parts(config, pretraining.Steps(_STEPS[-1], _STEPS[-1]), mesh).abstract_state


def _read_as_an_export_does(directory: Path, states: dict[int, Any]) -> None:
    """The right bits of some step, or an error of our own."""
    try:
        state, step = checkpoint.read_state(directory)
        config = checkpoint.read_config(directory, step)
    except CheckpointError:
        return
    micro.assert_equal(state, states[step])
    assert config["recipe"] == "dino"


def _resumed(directory: Path, target: Any, states: dict[int, Any], least: int) -> str:
    """What became of a resumed run, which may be refused only where no step is untouched."""
    try:
        with Checkpoints(directory, every_steps=2, keep=len(_STEPS)) as checkpoints:
            restored = checkpoints.restore_newest(target)
    except CheckpointError:
        assert not least, f"refused, with step {least} untouched"
        return "refused"
    assert restored is not None, "begins at step 0 without a word"
    assert restored.step >= least, f"step {restored.step}, with step {least} untouched"
    micro.assert_equal(checkpoint.nested(micro.copies(checkpoint.named_leaves(restored.state))), states[restored.step])
    return "resumed from the newest" if restored.step == _STEPS[-1] else "resumed from an older step"


def _accidents(directory: Path, rng: random.Random, newest: bool) -> tuple[str, set[int]]:
    """What was done, and the steps that it was done to."""
    steps = [_STEPS[-1]] if newest else rng.choices(_STEPS, k=rng.randint(1, 4))
    words = []
    for step in steps:
        path = directory / str(step)
        files = sorted(file for file in path.rglob("*") if file.is_file())
        how = "file" if newest or rng.random() < 0.7 else rng.choice(["rename", "copy", "part", "stray"])
        if how == "file" and files:
            words.append(change(rng.choice(files), rng))
        elif how == "rename" and files:
            words.append(f"mv {step} {step + 40}")
            path.rename(directory / str(step + 40))
        elif how == "copy" and files:
            words.append(f"cp {step} {step + 81}")
            shutil.copytree(path, directory / str(step + 81), dirs_exist_ok=True)
        elif how == "part" and files:
            part = rng.choice([child for child in path.iterdir() if child.is_dir()] or [path])
            words.append(f"rm -r {part.relative_to(directory)}")
            shutil.rmtree(part)
        else:
            words.append("stray directories")
            for name in ("99", "007", "8.orbax-checkpoint-tmp", "notes"):
                (directory / name / "state").mkdir(parents=True, exist_ok=True)
    return "; ".join(words), set(steps)


def change(path: Path, rng: random.Random) -> str:
    """One change of the bytes of a file; what was done."""
    data = bytearray(path.read_bytes())
    how = rng.choice(["flip", "flip", "cut", "zeros", "garbage", "removed", "grown"])
    place = rng.randrange(len(data)) if data else 0
    if how == "flip" and data:
        data[place] ^= 1 << rng.randrange(8)
    elif how == "cut":
        del data[place:]
    elif how == "zeros":
        data[place : place + 64] = bytes(len(data[place : place + 64]))
    elif how == "garbage":
        data[place : place + 64] = rng.randbytes(len(data[place : place + 64]))
    elif how == "grown":
        data += rng.randbytes(10)
    path.unlink() if how == "removed" else path.write_bytes(data)
    return f"{how} at {place} of {'/'.join(path.parts[-4:])}"
