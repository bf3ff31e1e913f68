"""A run whose step is really bad says how to repeat it; the command, given to a shell as it is printed, shows the same and ends."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from sere_jax.train.checkpoint import find_step
from tests.commands.test_pretrain import DRIVER, ROOT, command, environment, records, run

# The teacher's temperature falls from 0.04 to a number that float32 rounds to 0, in an epoch of 17 steps.
# The save of step 16 may be under way then.
BAD = DRIVER | {"data.batch_size": 64, "dino.teacher_temp": 1e-39, "dino.warmup_teacher_temp_epochs": 1}
BAD |= {"schedule.total_steps": 40, "run.checkpoint_every_steps": 4, "run.max_bad_steps": 2}


@pytest.mark.slow
def test_the_command_repeats_a_bad_step_and_ends(tmp_path: Path):
    workdir = tmp_path / "a run"
    ended = run(command(workdir, **BAD))
    assert ended.returncode == 1 and "run.max_bad_steps allows 2" in ended.stderr, ended.stderr
    (directory,) = (workdir / "bad_steps").iterdir()
    step = int(directory.name)
    facts = json.loads((directory / "step.json").read_text())
    assert step > 12 and facts["resumes_from"] in (step - 2, step - 6) and len(set(facts["images"])) == 64
    (line,) = [line for line in ended.stdout.splitlines() if f"step {step} was skipped" in line]
    printed = line.partition("To repeat it: ")[2]
    assert printed == facts["command"]
    for _ in range(2):  # the second one begins at the checkpoint that the first one saved before the step
        again = subprocess.run(printed, shell=True, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
        assert again.returncode == 0, again.stderr
        last = again.stdout.rstrip().splitlines()[-1]
        assert f"step {step} was repeated and is bad again: loss nan, grad_norm nan. NaN, infinite or above 1e19: gradient/" in last
        assert find_step(directory)[1] == step - 1
    first, second = records(workdir), records(directory)
    before = range(facts["resumes_from"] + 1, step)
    assert sorted(second) == [*before] and all(first[number]["loss"] == second[number]["loss"] for number in before)
