"""`python -m sere_jax aot` on fake devices of this process, and for TPU slices where libtpu is installed (slow)."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import jax
import pytest

from sere_jax import sharding
from sere_jax.build import pretraining
from sere_jax.commands import aot, chips, hlo
from sere_jax.train.state import State
from tests.commands.test_pretrain import DRIVER

GIB = 2**30


def _argument(keys: dict[str, Any]) -> str:
    return ",".join(f"{key}={value}" for key, value in keys.items() if not isinstance(value, tuple))


@pytest.mark.slow  # it compiles a step; tests/build/test_build.py reads one that is compiled anyway
def test_a_report_of_fake_devices(tmp_path: Path, capsys: pytest.CaptureFixture):
    """Every number of the report is there, and what travels is what data parallelism needs."""
    command = [f"--config=configs/quickstart.py:{_argument(DRIVER)}", "--topology=cpu:8", f"--json={tmp_path / 'report.json'}"]
    assert aot.main(command) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["devices"] == 8 and report["images"] == 2 and report["operations"] > 1e5 and report["traffic"] > 1e5
    assert set(report["memory"]) == {"parameters", "teacher", "optimizer", "statistics", "batch", "temporaries"}
    assert {(one["kind"], one["axis"]) for one in report["collectives"]} == {("all-reduce", "data")}
    carried = {one["carries"] for one in report["collectives"]}
    assert {"gradients of backbone/blocks", "gradients of heads_dino/mlp_0"} <= carried, carried
    printed = capsys.readouterr().out
    assert "memory of a device" in printed and "gradients of backbone/blocks" in printed and "8 devices, 2 images each" in printed


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("v5x:2x2", "expected cpu:N, or a TPU's"),
        ("cpu:x", "expected cpu:N with N"),
        ("cpu:99", "expected at most cpu:8"),
        ("v5e", "v5e:2x2"),
    ],
)
def test_topologies_that_cannot_be(topology: str, message: str, capsys: pytest.CaptureFixture):
    assert aot.main(["--config=configs/quickstart.py", f"--topology={topology}"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("source", ["", "source=folder:/nowhere,", "source=tfds:/nowhere:train,"])
def test_the_images_need_not_be_here(source: str, monkeypatch: pytest.MonkeyPatch):
    """The command of docs/pods.md names no images; a cluster's config names some that this machine lacks."""
    compiled: list[Any] = []

    def report(config: Any, mesh: Any) -> aot.Report:
        compiled.append(config)
        return aot.Report(mesh.size, 1, 0.0, {"parameters": GIB}, 1.0, 1.0, [])

    monkeypatch.setattr(aot, "compiled_report", report)
    command = [f"--config=configs/dino_sere_vits16.py:{source}epochs=1", "--topology=cpu:8", "--images_per_device=2"]
    assert aot.main(command) == 0 and compiled[0].data.batch_size == 16


def test_mistakes_of_the_config_are_listed(capsys: pytest.CaptureFixture):
    assert aot.main(["--config=configs/quickstart.py:protoypes=5"]) == 2
    assert "protoypes" in (error := capsys.readouterr().err) and "prototypes" in error
    assert aot.main(["--config=configs/quickstart.py:fsdp=3"]) == 2
    assert "run.fsdp: found 3" in capsys.readouterr().err


def test_the_largest_batch_and_the_bound():
    chip = chips.Chip(("x",), operations=1e12, memory=10 * GIB, bandwidth=1e9, links=1e9)
    whole, half = (
        aot.Report(8, images, 1.0, {"parameters": GIB, "temporaries": images * GIB // 8}, 5e11, 2e9, [_sum(4e9)]) for images in (16, 8)
    )
    assert aot.largest_batch(chip, whole, half) == int((9.5 - 1) * 8)
    assert whole.least_seconds(chip) == pytest.approx({"arithmetic": 0.5, "memory": 2.0, "links": 7.0})


def test_the_tables_of_a_report(capsys: pytest.CaptureFixture):
    """Memory by kind, alike collectives on one line, the largest first, and the bound."""
    paths = ("backbone/blocks_3/mlp/fc1/dot_general", "backbone/blocks_7/mlp/fc1/dot_general", "heads_dino/mlp_0/dot_general")
    ones = [
        hlo.Collective("all-reduce", hlo.Array("f32", (250_000,)), 1, 8, "data", f"jit(step)/transpose(jvp(Network))/{path}")
        for path in paths
    ]
    report = aot.Report(8, 16, 3.0, {"parameters": GIB, "temporaries": 3 * GIB}, 32e9, 2e9, ones)
    assert aot.summary(ones) == [
        ["gradients of backbone/blocks", "all-reduce", "f32", "data", "2", "2.000"],
        ["gradients of heads_dino/mlp_0", "all-reduce", "f32", "data", "1", "1.000"],
    ]
    aot.show("a step", report, chips.chip("v5e"), report._replace(images=8, memory={"parameters": GIB, "temporaries": 2 * GIB}))
    printed = capsys.readouterr().out
    assert "8 devices, 16 images each" in printed and "2.0 GFLOP an image" in printed
    assert "bound by memory, 6,552 images/s a chip at most" in printed  # 16 images in 2 GB / 819 GB/s
    assert f"about {int((0.95 * 16 - 4) * 8) + 16} images a chip fit" in printed


def _sum(size: float) -> hlo.Collective:
    return hlo.Collective("all-reduce", hlo.Array("f32", (int(size) // 4,)), 1, 8, "data", "")


needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu (requirements-aot.txt)")


def _reported(tmp_path: Path, argument: str, *options: str) -> dict[str, Any]:
    """The report of a full-size config (an argument of --config) for a TPU slice."""
    command = [f"--config=configs/{argument}", "--no-fits", f"--json={tmp_path / 'report.json'}", *options]
    assert aot.main(command) == 0
    return json.loads((tmp_path / "report.json").read_text())


def _state(argument: str) -> State:
    """Shapes and types of the state of the same config."""
    return pretraining.abstract_state(aot._config(f"configs/{argument}"), pretraining.Steps(1000, 100_000))


def _size(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize("argument", ["dino_sere_vits16.py:prototypes=65536", "ibot_sere_vits16.py"])
def test_a_pod_of_256_chips(argument: str, tmp_path: Path):
    """Gradients cross once, in float32. Beside them: BatchNorm's means and variances (forward in both networks, backward in the student),
    the teacher's mean bottleneck for each center, and the metrics."""
    report, state = _reported(tmp_path, argument, "--topology=v5e:16x16", "--images_per_device=64"), _state(argument)
    assert report["devices"] == 256 and sum(report["memory"].values()) <= 5 * GIB
    assert {(one["kind"], one["axis"]) for one in report["collectives"]} == {("all-reduce", "data")}
    gradients = _size(state.params)
    beside = 2 * _size(state.batch_stats) + _size(state.method.teacher_batch_stats) + 4 * (2 * 256 + 50)
    assert gradients <= sum(one["bytes"] for one in report["collectives"]) <= 1.1 * (gradients + beside)


@pytest.mark.slow
@needs_libtpu
def test_a_split_vit_l_keeps_an_eighth(tmp_path: Path):
    """Parameters, teacher and optimizer: an eighth of the whole, and the small leaves that every chip holds."""
    argument = "dino_sere_vits16.py:variant=vitl,fsdp=8"
    memory = _reported(tmp_path, argument, "--topology=v5e:4x4", "--images_per_device=8")["memory"]
    state = _state(argument)
    for kind, tree in (("parameters", state.params), ("teacher", state.method.teacher), ("optimizer", state.opt_state)):
        everywhere = _size([leaf for leaf in jax.tree.leaves(tree) if leaf.size < sharding.MIN_SHARDED_SIZE])
        assert memory[kind] == pytest.approx((_size(tree) - everywhere) / 8 + everywhere, rel=0.1), kind
