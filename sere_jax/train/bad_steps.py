"""What is kept of the first step of a run that was skipped, so that it can be repeated."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from sere_jax.buckets import Location, copy_tree, is_address
from sere_jax.train import checkpoint
from sere_jax.writing import replacing

DIRECTORY = "bad_steps"
_FACTS = "step.json"


def keep(workdir: Location, step: int, facts: Mapping[str, Any], argv: Sequence[str] = ()) -> str:
    """Make WORKDIR/bad_steps/STEP, a workdir that resumes before the step; return a sentence, "" where an earlier step was kept.

    A step is a pure function of the state, the seed and the images. So the run's command (`argv`) with this directory as its workdir takes
    the same step again, on the same kind of machine in the same bits, and ends. The newest checkpoint before the step is linked there,
    which takes no space until the run deletes its own. `facts` and the command are written to `step.json`.

    Example:
      >>> from pathlib import Path
      >>> keep(Path("run"), 7, {"seed": 0})
      'step 7 was skipped; run/bad_steps/7 says of which images. To repeat it: train with the same config and --workdir=run/bad_steps/7'
      >>> keep(Path("run"), 9, {"seed": 0}), kept(Path("run/bad_steps/7")), kept(Path("run"))
      ('', 7, 0)
    """
    target = workdir / DIRECTORY / str(step)
    if target.parent.is_dir():
        return ""
    root = epath.Path(workdir / "checkpoints")
    before = [saved for saved in checkpoint.steps_if_readable(root) if saved < step]
    target.mkdir(parents=True)
    if before and is_address(workdir):
        copy_tree(root / str(before[-1]), epath.Path(target / "checkpoints" / str(before[-1])))
    elif before:
        shutil.copytree(root / str(before[-1]), target / "checkpoints" / str(before[-1]), copy_function=_link)
    command = _command(argv, target)
    with replacing(target / _FACTS) as temporary:
        temporary.write_text(
            json.dumps({"step": step, "resumes_from": before[-1] if before else 0, "command": command, **facts}, indent=2) + "\n"
        )
    return f"step {step} was skipped; {target} says of which images. To repeat it: {command}"


def kept(workdir: Location) -> int:
    """The step that a workdir was made for by `keep`; 0 for the workdir of a run."""
    facts = workdir / _FACTS
    if workdir.parent.name != DIRECTORY or not workdir.name.isdigit() or not facts.is_file():
        return 0
    return int(workdir.name)


def _command(argv: Sequence[str], target: Location) -> str:
    """The command of `train.py` with another workdir, to be given to a shell in the same directory."""
    words = list(argv)
    for place, word in enumerate(words):
        name, sign, _ = word.partition("=")
        if name.lstrip("-") == "workdir" and name.startswith("-"):
            words[place : place + (1 if sign else 2)] = [f"--workdir={target}"]
            return shlex.join([sys.executable, *words])
    return f"train with the same config and --workdir={target}"


def _link(source: str, target: str) -> str:
    """A hard link, or a copy where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target
