"""The first step that was skipped is kept in a workdir of its own, which resumes before it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax.numpy as jnp

from sere_jax.train import bad_steps, checkpoint
from sere_jax.train.checkpoint_manager import Checkpoints


def test_the_first_bad_step_is_kept_though_its_checkpoint_is_pruned(tmp_path: Path):
    with Checkpoints(tmp_path / "checkpoints", every_steps=1, keep=2) as checkpoints:
        for step in (2, 4, 6):
            checkpoints.save(step, {"a": jnp.full(3, step)}, {"seed": 1})
            checkpoints.wait()
        argv = ["train.py", "--config=a file.py", "--workdir", str(tmp_path), "--config.seed=1"]
        sentence = bad_steps.keep(tmp_path, 5, {"images": [3, 1]}, argv)
        command = f"{sys.executable} train.py '--config=a file.py' --workdir={tmp_path}/bad_steps/5 --config.seed=1"
        assert sentence.endswith(f"To repeat it: {command}")
        assert bad_steps.keep(tmp_path, 7, {"images": []}) == ""  # one is enough
        for step in (8, 10):
            checkpoints.save(step, {"a": jnp.full(3, step)}, {"seed": 1})
    assert checkpoint.complete_steps(checkpoint.epath.Path(tmp_path / "checkpoints")) == [8, 10]
    state, step = checkpoint.read_state(tmp_path / "bad_steps" / "5")
    assert step == 4 and state["a"].tolist() == [4, 4, 4]
    facts = json.loads((tmp_path / "bad_steps" / "5" / "step.json").read_text())
    assert facts == {"step": 5, "resumes_from": 4, "command": command, "images": [3, 1]}
    assert bad_steps.kept(tmp_path / "bad_steps" / "5") == 5 and bad_steps.kept(tmp_path) == 0


def test_before_the_first_checkpoint_it_begins_at_step_0(tmp_path: Path):
    bad_steps.keep(tmp_path, 1, {})
    assert [path.name for path in (tmp_path / "bad_steps" / "1").iterdir()] == ["step.json"]
