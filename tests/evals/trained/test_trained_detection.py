"""The protocol `detection`: its rate by hand, mistakes in its config, and a whole training on painted scenes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from configs.eval import detection as config_file
from sere_jax.commands import evaluate
from sere_jax.data.sources.with_objects import WithObjects
from sere_jax.evals import protocols
from sere_jax.evals.network import EvalError
from sere_jax.evals.trained import detection
from tests.data.annotations.painted import Painted
from tests.evals.trained.test_detector import SMALL, vit

SCENES = {"batch_size": 4, "epochs": 2, "milestones": (1,), "sizes": (48, 64), "longest": 64, "before_crop": (48,), "crop_range": (32, 48)}
SCENES |= {"test_size": 64, "test_longest": 64, "test_batch_size": 4, "objects": 4, "warmup_steps": 2, "log_every_steps": 1, "panels": 2}


def config(**changes):
    result = config_file.get_config()
    result.update({"train": "painted", "test": "painted", **SMALL, **SCENES, **changes})
    return result


def test_the_rate_is_warmed_up_and_falls_to_a_tenth_after_each_milestone():
    settings = evaluate.settings(config_file.get_config(), [])
    rate = detection.learning_rate(settings, steps_per_epoch=1000)
    for step, expected in ((0, 1e-7), (250, 1e-4 * (0.001 + 0.999 / 2)), (500, 1e-4), (7999, 1e-4), (8000, 1e-5), (11_000, 1e-6)):
        assert float(rate(jnp.int32(step))) == pytest.approx(expected, rel=1e-5)


def test_mistakes_among_the_keys_are_told():
    assert protocols.mistakes(config_file.get_config()) == []
    assert protocols.mistakes(config(milestones=(1, 2)))[0].startswith("milestones: found (1, 2), expected epochs before the last of 2")
    assert protocols.mistakes(config(epochs=1, milestones=())) == []  # the rate never falls
    assert protocols.mistakes(config(longest=50, test_longest=63)) == [
        "longest: found 50, expected at least 64, the largest shorter side of sizes",
        "test_longest: found 63, expected at least 64, the largest shorter side of test_size",
    ]
    assert protocols.mistakes(config(before_crop=(48, 70)))[0].startswith("longest: found 64, expected at least 70")
    assert protocols.mistakes(config(before_crop=(48, 70), crop_prob=0.0)) == []
    assert protocols.mistakes(config(batch_size=3), processes=2)[0].startswith("batch_size: found 3")


def test_sets_that_do_not_suit_are_refused_before_the_training(monkeypatch, tmp_path):
    def run(source: Painted, **changes) -> None:
        monkeypatch.setattr(detection, "open_sets", lambda train, test, masks: (WithObjects(source), source))
        evaluate.run(config(**changes), [vit()], tmp_path)

    with pytest.raises(EvalError, match="batch_size: found 16, expected at most the 12 training images"):
        run(Painted(), batch_size=16)
    with pytest.raises(EvalError, match="masks: found True, and painted has boxes alone"):
        run(Painted(boxes_alone=tuple(range(12))), batch_size=8)


@pytest.mark.slow
def test_a_detector_is_trained_tested_and_read_again(monkeypatch, tmp_path):
    source = Painted(crowds=(1,), without=(2,), damaged=(5,))
    monkeypatch.setattr(detection, "open_sets", lambda train, test, masks: (WithObjects(source), source))
    evaluate.run(config(batch_size=8), [vit()], tmp_path)
    report = json.loads((tmp_path / "eval" / "detection.json").read_text())
    (row,) = report["results"]
    assert {"box_ap", "box_ap50", "box_ap75", "mask_ap"} <= set(row["scores"])
    assert report["images"]["test"]["left_out"] == ["5.png"]
    lines = [json.loads(line) for line in Path(row["training"], "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "test/box_ap" in line] == [1, 2]
    assert all(f"stage_{i}/{part}" in lines[0] for i in (1, 2, 3) for part in ("classes", "boxes", "masks"))
    evaluate.run(config(batch_size=8), [vit()], tmp_path)  # finished: only read
    again = json.loads((tmp_path / "eval" / "detection.json").read_text())["results"][0]
    assert again["scores"] == row["scores"] and again["training"] == row["training"]


# A process that trains as the test does, and is killed while it tests the weights of its second epoch.
KILLED = """
import os, pathlib, signal, sys
import pytest
from sere_jax.evals.detection.tester import Tester
from tests.evals.trained import test_trained_detection as ours

test, calls = Tester.__call__, []

def killed(*arguments):
    calls.append(1)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return test(*arguments)

Tester.__call__ = killed
ours.trained(pytest.MonkeyPatch(), pathlib.Path(sys.argv[1]))
"""


def trained(monkeypatch: pytest.MonkeyPatch, workdir: Path) -> tuple[dict, dict]:
    """Three epochs of one step: the scores, and by step all that the loss is made of."""
    source = Painted()
    monkeypatch.setattr(detection, "open_sets", lambda train, test, masks: (WithObjects(source), source))
    evaluate.run(config(batch_size=8, epochs=3, drop_path=0.1), [vit()], workdir)
    (row,) = json.loads((workdir / "eval" / "detection.json").read_text())["results"]
    lines = [json.loads(line) for line in Path(row["training"], "metrics.jsonl").read_text().splitlines()]
    parts = {
        line["step"]: {key: value for key, value in line.items() if key == "loss" or key.startswith(("stage", "anchors"))}
        for line in lines
        if "loss" in line
    }
    return row["scores"], parts


@pytest.mark.slow
def test_a_training_that_is_killed_and_resumed_is_the_same(monkeypatch, tmp_path):
    whole = trained(monkeypatch, tmp_path / "whole")
    assert sorted(whole[1]) == [1, 2, 3]
    command = [sys.executable, "-c", KILLED, str(tmp_path / "parts")]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert not (tmp_path / "parts" / "eval" / "detection.json").exists()
    assert trained(monkeypatch, tmp_path / "parts") == whole
