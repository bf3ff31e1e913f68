"""TFDS's builders through `prepare`: every documented command up to the download, and a builder of the user's own to the end."""

from __future__ import annotations

import re
import shlex
import sys

import pytest

from sere_jax.commands import prepare
from sere_jax.config.sources import source_mistakes
from sere_jax.data.prepare import builders
from sere_jax.data.sources.open import SourceError, open_source
from tests.data.images.images import encode, gradient
from tests.house import ROOT

tfds = pytest.importorskip("tensorflow_datasets")
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"python -m sere_jax prepare (--source=tfds:.*?)(?:\s+#.*)?`?$", re.MULTILINE)
COMMANDS = sorted({command for path in DOCUMENTS for command in COMMAND.findall(path.read_text())})


class Download(Exception):
    """The moment at which a builder would begin."""


@pytest.fixture(autouse=True)
def data_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "tfds"


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The builder of docs/data.md, with four photographs; forgotten by TFDS afterwards."""
    (code,) = re.findall(r"```python\n(# my_photos.py\n.*?)```", (ROOT / "docs" / "data.md").read_text(), re.DOTALL)
    (tmp_path / "my_photos.py").write_text(code)
    for i, label in enumerate(("cat", "cat", "dog", "dog")):
        (tmp_path / "photos" / label).mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / label / f"{i}.jpg").write_bytes(encode(gradient(20, 30, i), "JPEG"))
    yield tmp_path / "my_photos.py"
    tfds.core.registered._DATASET_REGISTRY.pop("my_photos", None)
    sys.modules.pop("my_photos", None)


def test_there_are_documented_commands():
    assert any("cifar10" in command for command in COMMANDS) and any("my_photos.py" in command for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_documented_commands_run_up_to_the_download(command, example, data_dir, monkeypatch):
    begun = []

    def download(builder):
        begun.append(builder)
        raise Download

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", download)
    with pytest.raises(Download):
        prepare.main(shlex.split(command))
    (builder,) = begun
    assert builder.info.file_format.value == "array_record" and str(builder.data_dir).startswith(str(data_dir))


def test_a_builder_of_one_s_own_runs_and_its_set_is_read_by_name(example, tmp_path, capsys):
    assert prepare.main([f"--source=tfds:{example}:train"]) == 0
    assert "my_photos/1.0.0:train  4 examples" in capsys.readouterr().out
    source = open_source("tfds:my_photos:train")
    assert source.classes == ("cat", "dog") and sorted(source[i].label for i in range(4)) == [0, 0, 1, 1]
    tfds.core.registered._DATASET_REGISTRY.pop("my_photos")
    assert prepare.main([f"--source=tfds:{example}:train", f"--output={tmp_path / 'small'}", "--max_side=16"]) == 0  # not built again
    assert len(open_source(f"tfds:{tmp_path / 'small'}:train")) == 4
    assert source_mistakes("data.source", f"tfds:{tmp_path / 'small'}:train") == []


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("mnist", ImportError("No module named 'tensorflow'"), "needs tensorflow, once: pip install -r requirements-prepare.txt"),
        ("mnist", ModuleNotFoundError("No module named 'importlib_resources'"), "needs importlib_resources, once: pip install -r"),
        ("mnist", ModuleNotFoundError("No module named 'apache_beam.io'"), "needs apache_beam, which cannot be installed beside"),
        ("mnist", ModuleNotFoundError("No module named 'pydub'"), "its builder needs pydub, which is not installed"),
        ("mnist", AssertionError("Manual directory\n is empty"), "the builder cannot go on: Manual directory is empty"),
    ],
)
def test_what_a_builder_lacks_is_one_line(name, error, message, monkeypatch, capsys):
    def fail(builder):
        raise error

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    assert prepare.main([f"--source=tfds:{name}:train"]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tfds:", "expected tfds:NAME"),
        ("tfds:no_such_set:train", "has no such builder"),
        ("tfds:missing.py:train", "does not exist; expected the Python file"),
        ("tfds:empty.py", "found none in .*empty.py, expected exactly one subclass"),
    ],
)
def test_what_cannot_be_a_builder_is_refused(spec, message, tmp_path):
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(SourceError, match=message):
        builders.build(spec)


def test_prepared_directories_are_no_builders(tmp_path):
    assert not builders.is_builder(f"tfds:{tmp_path}:train") and not builders.is_builder("folder:x")
    assert builders.is_builder("tfds:cifar10") and builders.is_builder("tfds:./set.py/config:train")


def test_options_that_need_an_output_are_not_ignored(capsys):
    assert prepare.main(["--source=tfds:mnist:train", "--max_side=20"]) == 2
    assert "--output: missing" in capsys.readouterr().err
