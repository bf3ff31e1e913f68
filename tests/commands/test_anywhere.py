"""Every command runs from any directory, with paths that start there, by the entry point that an installation makes."""

from __future__ import annotations

import importlib
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from sere_jax import __main__ as front
from tests import micro, saved_run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with run/, photos/ and an empty elsewhere/."""
    root, config = tmp_path_factory.mktemp("anywhere"), micro.config()
    saved_run.checkpoint(root / "run", config, saved_run.state(config))
    (root / "run" / "metrics.jsonl").write_text('{"step": 1, "time": 0.0, "loss": 2.0}\n')
    for name in ("photos", "elsewhere"):
        (root / name).mkdir()
    for number in range(2):
        Image.new("RGB", (24, 20), (60 * number, 90, 30)).save(root / "photos" / f"{number}.png")
    return root


@pytest.fixture
def command(place: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], int]:
    """The function behind the script `sere-jax`, in elsewhere/."""
    monkeypatch.chdir(place / "elsewhere")
    module, _, function = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["sere-jax"].partition(":")
    return getattr(importlib.import_module(module), function)


_PHOTOS = "folder:../photos"
COMMANDS = {
    "export": (["--checkpoint=../run", "--output=weights/x.safetensors"], "weights/x.safetensors"),
    "extract": (["--checkpoint=../run", f"--data={_PHOTOS}", "--output=features", "--batch_size=2"], "features/features-00000.parquet"),
    "prepare": ([f"--source={_PHOTOS}", "--output=prepared", "--workers=1"], "prepared/manifest.json"),
    "check": ([f"--source={_PHOTOS}", "--json=check.json", "--workers=1"], "check.json"),
    "report": (["--workdir=../run", "--output=page/report.html"], "page/report.html"),
    "bench": ([f"--source={_PHOTOS}", "--json=b.json", "--host_only", "--rounds=1", "--global_size=8", "--local_count=0"], "b.json"),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "extract")) for name in COMMANDS])  # it compiles
def test_a_command_runs_from_another_directory(name: str, place: Path, command: Callable[[list[str]], int]):
    options, written = COMMANDS[name]
    assert command([name, *options]) == 0
    assert (place / "elsewhere" / written).is_file()
    assert sorted(path.name for path in place.iterdir()) == ["elsewhere", "photos", "run"]


def test_ablate_finds_its_tables_from_another_directory(command: Callable[[list[str]], int], capsys: pytest.CaptureFixture):
    """Its configs lie in the checkout. The whole command is slow: a mistake shows that they were read."""
    assert command(["ablate", "--table=8", "--rows=nothing", f"--data={_PHOTOS}", "--workdir=runs"]) == 2
    assert "--rows: found nothing, expected some of none, image" in capsys.readouterr().err


def test_runs_looks_below_a_relative_directory(place: Path, command: Callable[[list[str]], int], capsys: pytest.CaptureFixture):
    assert command(["runs", "."]) == 1
    assert capsys.readouterr().err == f"{place / 'elsewhere'}: holds no runs (directories with config.json and metrics.jsonl)\n"


def test_no_command_is_forgotten():
    assert COMMANDS.keys() | {"ablate", "aot", "runs"} == front.COMMANDS.keys()
