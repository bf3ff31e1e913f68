"""Ablation tables whose rows are not all finished: the tables of what is there, rows that end badly, and exit codes."""

from __future__ import annotations

import errno
import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import pytest

from configs import ablation
from sere_jax.buckets import Outage
from sere_jax.commands import ablate, ablation_evaluations, ablation_rows, evaluate, identity
from sere_jax.commands.ablation_files import read_protocol
from sere_jax.data.sources.open import open_source
from sere_jax.train.checkpoint import CheckpointError, UnsoundState, UnwritableCheckpoint
from sere_jax.train.checkpoint_manager import Checkpoints
from sere_jax.train.lock import WorkdirError
from sere_jax.train.meter import TooManyBadSteps
from tests.commands.test_ablate import MICRO

KNN = "configs/eval/knn.py:bundled,tokens=('cls',),neighbours=(10,)"
RETRIEVAL = "configs/eval/retrieval.py:baselines=false,tokens=('cls',),source=bundled"


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    micro = ["--size=small", "--data=bundled", "--steps=2", f"--set={MICRO}"]
    return ["--table=8", *micro, f"--workdir={tmp_path}", f"--protocol={KNN}", f"--protocol={RETRIEVAL}"]


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("something was computed")

    monkeypatch.setattr(ablation_rows.pretrain, "train", fail)
    monkeypatch.setattr(evaluate, "load", fail)
    monkeypatch.setattr(evaluate, "run", fail)


def _workdirs(command: list[str]) -> dict[str, ablation_rows.Run]:
    return {run.row: run for run in ablate._runs(ablation, 8, ablate._parser().parse_args(command))}


def _save(run: ablation_rows.Run, step: int) -> None:
    """A checkpoint of that step, as training writes it, with other arrays."""
    checkpoints = Checkpoints(run.workdir / "checkpoints", every_steps=1)
    images = identity.read_data(open_source("bundled"))
    checkpoints.save(step, {"w": jnp.ones(3)}, run.config.to_dict(), force=True, identity=images.saved())
    checkpoints.close()


def _report(run: ablation_rows.Run, spec: str, top1: float) -> None:
    path = ablation_evaluations.report(run.workdir, ablation_evaluations.read_images(read_protocol(spec)))
    path.parent.mkdir(parents=True)
    results = {"knn": {"tokens": "cls", "best_top1": top1}, "retrieval": {"tokens": "cls", "precision_at_1": top1}}
    protocol = path.stem
    path.write_text(json.dumps({"protocol": protocol, "results": [results[protocol]]}))


def test_the_table_of_what_is_there(command: list[str], tmp_path: Path, nothing_runs: None, capsys: pytest.CaptureFixture):
    """A finished row, one without all reports, one on its way, one that began, one that did not; nothing is computed."""
    runs = _workdirs(command)
    for row, step in {"none": 0, "image": 2, "channel": 1}.items():
        _save(runs[row], step)
    _report(runs["none"], KNN, 0.25)
    _report(runs["image"], KNN, 0.5)
    (tmp_path / "rows" / runs["spatial"].workdir.name).mkdir()
    command = [part for part in command if part != f"--protocol={RETRIEVAL}"]
    assert ablate.main([*command, "--rows=none,image", "--table_only"]) == 0
    assert "training" not in capsys.readouterr().out
    two = [*command, f"--protocol={RETRIEVAL}", "--rows=image,spatial,channel,all", "--table_only"]
    before = set((tmp_path / "rows").rglob("*"))
    assert ablate.main(two) == 1
    assert set((tmp_path / "rows").rglob("*")) == before
    table = json.loads((tmp_path / "table8.json").read_text())
    assert {row["row"]: row["runs"][0]["error"] for row in table["rows"]} == {
        "image": "trained, but not evaluated: retrieval",
        "spatial": "not trained to its end: begun, but without a checkpoint",
        "channel": "not trained to its end: step 1 of 2",
        "all": "not begun",
    }
    assert table["rows"][0]["runs"][0]["values"] == {"k-NN top-1, cls": 50.0}
    lines = (tmp_path / "table8.md").read_text().splitlines()
    assert "channel, seed 0: not trained to its end: step 1 of 2  " in lines
    assert sum(line.startswith(("| channel | 2 |", "| all | 2 |")) for line in lines) == 2
    assert capsys.readouterr().out.count("Table 8") == 1
    # The command in the table can be given as it is.
    again = ablate._parser().parse_args(shlex.split(shlex.join(table["command"].split()[4:])))
    assert vars(again) == vars(ablate._parser().parse_args(two))


def test_the_table_needs_no_devices_of_the_training(command: list[str], tmp_path: Path, nothing_runs: None, capsys: pytest.CaptureFixture):
    """Rows for 7 devices and for batches that they share: any other number of devices is refused to train, and makes the table."""
    command = [part.replace("batch_size=16", "batch_size=63,run.fsdp=7") for part in command] + ["--rows=image"]
    assert ablate.main(command) == 2 and "run.fsdp" in capsys.readouterr().err
    assert ablate.main([*command, "--table_only"]) == 1 and "image, seed 0: not begun" in (tmp_path / "table8.md").read_text()


def test_a_workdir_that_cannot_be_read_is_not_taken_for_an_empty_one(
    command: list[str], nothing_runs: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    def refused(path: Path) -> None:
        raise CheckpointError(f"{path} cannot be read: it is away") from OSError(errno.EIO, "it is away")

    monkeypatch.setattr(ablation_rows.checkpoint, "find_step", refused)
    assert ablate.main([*command, "--table_only"]) == 2 and "cannot be read: it is away" in capsys.readouterr().err


def _full() -> Exception:
    return UnwritableCheckpoint("a checkpoint could not be written: No space left on device")


def _outage() -> Exception:
    error = CheckpointError("gs://b/run cannot be read: 503")
    error.__cause__ = Outage(errno.EIO, "503", "gs://b/run")
    return error


@pytest.mark.parametrize(
    ("error", "code", "trained"),
    [
        (_full, 1, 1),
        (_outage, 1, 1),
        (lambda: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 1, 1),  # of a report: the disk took a file at the start
        (lambda: WorkdirError("another run writes there"), 2, 1),
        (lambda: UnsoundState("step 2 is not saved: found values that are NaN"), 1, 2),
        (lambda: TooManyBadSteps("11 bad steps"), 1, 2),
    ],
    ids=["full disk", "outage", "full disk of a report", "another run", "unsound", "bad steps"],
)
def test_a_row_ends_with_the_exit_code_of_train_py(
    command: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    error: Callable[[], Exception],
    code: int,
    trained: int,
):
    """What is wrong with one row does not keep the other from being run; what is wrong with the disk would end it too."""
    rows = []

    def train(config: object, workdir: str, launch: object) -> None:
        rows.append(workdir)
        raise error()

    monkeypatch.setattr(ablation_rows.pretrain, "train", train)
    assert ablate.main([*command, "--rows=none,channel"]) == code
    assert len(rows) == trained and capsys.readouterr().err.count("\n") == trained  # a sentence each


def test_a_row_that_failed_is_not_trained_again_for_another_table(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = []

    def train(config: object, workdir: str, launch: object) -> None:
        rows.append(workdir)
        raise TooManyBadSteps("11 bad steps")

    monkeypatch.setattr(ablation_rows.pretrain, "train", train)
    assert ablate.main([*command, "--table=7,10", "--rows=dino", "--seeds=0,1"]) == 1 and len(rows) == 2
    for number in (7, 10):
        [row] = json.loads((tmp_path / f"table{number}.json").read_text())["rows"]
        assert [(run["seed"], run["error"]) for run in row["runs"]] == [(0, "11 bad steps"), (1, "11 bad steps")]
