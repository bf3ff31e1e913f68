"""Segmentation on one and on eight devices, and after a restart: the same mIoU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import pytest
from ml_collections import ConfigDict

from configs.eval import patch_knn, segmentation_linear, upernet
from sere_jax.commands import evaluate
from sere_jax.evals.trained import segmentation_test
from tests.evals.segmentation import micro_masks
from tests.evals.trained import micro_training

SHORT = {"steps": 6, "eval_every_steps": 2, "warmup_steps": 1, "batch_size": 8, "size": 16, "limits": (48, 24), "stride": 10}
SHORT |= {"channels": 8, "random_init": False, "panels": 0, "log_every_steps": 1}


class Broken(Exception):
    """What ends a run in its middle."""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    directory = tmp_path_factory.mktemp("masked")
    return {"train": micro_masks.masked(directory / "train", 8), "test": micro_masks.masked(directory / "test", 3, seed=1)}


def trained(protocol: Any, sources: dict[str, str]) -> ConfigDict:
    config = protocol.get_config()
    config.update(sources | SHORT | {"blocks": (0, 0, 1, 1) if protocol is upernet else (0, 1)})
    config.learning_rate = 0.003
    return config


def scores(config: ConfigDict, workdir: Path) -> dict[str, float]:
    """The scores of the micro network, without baselines."""
    evaluate.run(config, [micro_training.network()], workdir)
    (row,) = [row for row in json.loads((workdir / "eval" / f"{config.protocol}.json").read_text())["results"] if not row["baseline"]]
    return row["scores"]


def on_one_device(config: ConfigDict, workdir: Path) -> dict[str, float]:
    """The same where JAX has the first of its devices alone."""
    first = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("devices", lambda: first), ("local_devices", lambda: first), ("device_count", lambda: 1)):
            patch.setattr(jax, name, value)
        return scores(config, workdir)


@pytest.mark.slow
def test_frozen_patches_score_alike_on_one_and_on_eight_devices(sources: dict[str, str], tmp_path: Path):
    config = patch_knn.get_config()
    config.update(sources | {"neighbours": (1, 3), "batch_size": 8, "baselines": False, "panels": 0})
    assert jax.device_count() == 8
    assert scores(config, tmp_path / "eight") == pytest.approx(on_one_device(config, tmp_path / "one"), abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", [segmentation_linear, upernet], ids=["linear", "upernet"])
def test_a_trained_head_scores_alike_on_other_devices_and_after_a_restart(
    protocol: Any, sources: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = trained(protocol, sources)
    whole = scores(config, tmp_path / "whole")
    # Sums in another order: the weights differ by float32's rounding, and with them the class of a few of the 7,080 pixels.
    assert on_one_device(config, tmp_path / "one") == pytest.approx(whole, abs=3e-3)

    test, calls = segmentation_test.Tester.__call__, []

    def broken(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:  # the test of step 4
            raise Broken
        return test(*arguments)

    monkeypatch.setattr(segmentation_test.Tester, "__call__", broken)
    with pytest.raises(Broken):
        scores(config, tmp_path / "parts")
    monkeypatch.setattr(segmentation_test.Tester, "__call__", test)
    assert scores(config, tmp_path / "parts") == whole
