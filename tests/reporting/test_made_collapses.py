"""Runs that are made to collapse are told within 200 steps; runs that learn are left alone.

Batches of one image are no such mistake for this method: 300 steps of them kept loss and entropy 20 % of ln K apart, and the features
nearly as many effective dimensions as random initialisation has. Their rate is that of one image.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.commands.test_pretrain import ROOT, environment

pytestmark = pytest.mark.slow  # a minute for each run

_MICRO = {
    "views.global_size": 32,
    "views.local_size": 16,
    "relation.global_points": 4,
    "relation.local_points": 2,
    "model.width": 48,
    "model.depth": 2,
    "head.prototypes": 128,
    "head.hidden": 64,
    "head.bottleneck": 32,
    "eval.resize": 32,
    "schedule.total_steps": 200,
    "run.eval_every_steps": 50,
    "run.log_every_steps": 10,
}
_MISTAKES: dict[str, dict[str, Any]] = {
    "a teacher temperature of 1": {"dino.teacher_temp": 1.0},
    "a center that never moves": {"dino.center_momentum": 1.0},
    "a rate 60 times too high": {"optimizer.base_lr": 1.0},
}
_ONE_IMAGE = {"data.batch_size": 1, "optimizer.warmup_epochs": 0, "optimizer.freeze_last_layer_epochs": 0}


def _first_alarm(workdir: Path, **changes: Any) -> int | None:
    flags = [f"--config.{key}={value}" for key, value in (_MICRO | changes).items()]
    command = [sys.executable, "train.py", "--config=configs/quickstart.py", f"--workdir={workdir}", *flags]
    subprocess.run(command, cwd=ROOT, env=environment(), check=True, timeout=900)
    records = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return next((record["step"] for record in records if record.get("collapse")), None)


@pytest.mark.parametrize("mistake", _MISTAKES)
def test_a_made_collapse_is_told(tmp_path: Path, mistake: str):
    assert _first_alarm(tmp_path, **_MISTAKES[mistake]) is not None


@pytest.mark.parametrize("changes", [{}, _ONE_IMAGE], ids=["as it is", "batches of one image"])
def test_a_run_that_learns_is_left_alone(tmp_path: Path, changes: dict[str, Any]):
    assert _first_alarm(tmp_path, **changes | {"schedule.total_steps": 300}) is None
