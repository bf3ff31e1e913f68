"""The commands of docs/evaluation.md prepare, train on and score the real layouts of segmentation: miniatures of the same files."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import micro, saved_run
from tests.evals.trained import real_layouts
from tests.evals.trained.real_layouts import Miniature

ROOT = Path(__file__).parents[3]
# What makes a documented command small. Nothing that says which files are read, and how their numbers are understood.
STEPS = ("steps=3", "warmup_steps=1", "eval_every_steps=2", "batch_size=2", "size=16", "limits=(48,24)", "channels=8", "random_init=False")
SMALL = {
    "patch_logistic": ("cs=(1.0,)", "max_steps=20"),
    "segmentation_linear": (*STEPS, "blocks=(0,1)", "stride=10"),
    "upernet": (*STEPS, "blocks=(0,0,1,1)", "stride=10"),
    "imagenet_s": STEPS,
}


def documented(prepared: str) -> list[list[str]]:
    """The command that prepares a set, and all that read it, as docs/evaluation.md has them."""
    text = (ROOT / "docs" / "evaluation.md").read_text()
    lines = [line.strip() for line in text.splitlines() if line.startswith("    python ")]
    return [shlex.split(line) for line in lines if line.endswith(f"--output={prepared}") or f"=tfds:{prepared}:" in line]


def execute(command: list[str], directory: Path) -> None:
    """Run a command where the programs of a clone lie, on one device."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    done = subprocess.run([sys.executable, *command[1:]], cwd=directory, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def check(command: list[str], report: dict, miniature: Miniature, directory: Path) -> None:
    """What a protocol reports: the images of the splits that the command names, the set's classes, every pixel that counts."""
    splits = dict(re.findall(r"(train|test)=tfds:\w+:(\w+)", " ".join(command)))
    assert {part: report["images"][part]["read"] for part in splits} == {part: miniature.images[split] for part, split in splits.items()}
    (row,) = [row for row in report["results"] if not row["baseline"]]
    assert all(0 <= value <= 1 for value in row["scores"].values())
    with (directory / "RUN" / "eval" / f"{report['protocol']}-run-confusion.csv").open() as file:
        table = list(csv.reader(file))
    assert len(table) == miniature.classes + 1
    assert sum(int(cell) for line in table[1:] for cell in line[1:]) == miniature.counted


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "prepared", "protocols"),
    [
        (real_layouts.voc, "VOC", ["patch_logistic", "segmentation_linear", "upernet"]),
        (real_layouts.ade20k, "ADE", ["upernet"]),
        (real_layouts.imagenet_s, "S", ["imagenet_s"]),
    ],
)
def test_a_set_is_prepared_trained_on_and_scored_as_documented(
    make: Callable[[Path], Miniature], prepared: str, protocols: list[str], tmp_path: Path
):
    miniature = make(tmp_path)
    for name in ("eval.py", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    saved_run.checkpoint(tmp_path / "RUN", micro.config(), saved_run.state(micro.config()))
    prepare, *evaluations = documented(prepared)
    assert prepare[1:4] == ["-m", "sere_jax", "prepare"]
    names = [re.search(r"configs/eval/(\w+)\.py", " ".join(command))[1] for command in evaluations]
    assert names == protocols
    execute(prepare, tmp_path)
    for name, command in zip(names, evaluations, strict=True):
        execute([*command, *(f"--config.{change}" for change in SMALL[name])], tmp_path)
        report = json.loads((tmp_path / "RUN" / "eval" / f"{name}.json").read_text())
        check(command, report, miniature, tmp_path)
        launched = json.loads((tmp_path / "RUN" / "eval" / "launches" / f"{name}.json").read_text())
        assert f"--config={launched['config_file']}" in command
        assert set(launched["changed"]) <= {change.partition("=")[0] for change in SMALL[name]} | {"submission"} and launched["changed"]
    if prepared == "S":
        with zipfile.ZipFile(tmp_path / "RUN" / "eval" / "imagenet_s-run-submission.zip") as archive:
            assert archive.namelist() == [f"{wnid}/{wnid}_{number}.png" for number, wnid in enumerate(real_layouts.WNIDS)]
