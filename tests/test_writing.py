"""Files appear whole or not at all, with the mode that the umask gives."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from matplotlib.figure import Figure
from PIL import Image

from sere_jax.commands import data_bench, data_check
from sere_jax.data.prepare.shards import Output, Shard
from sere_jax.evals.figures import canvas
from sere_jax.interop.files import write_json, write_tensors
from sere_jax.interop.torch_file import write_torch
from sere_jax.reporting import table
from sere_jax.reporting.records import Records
from sere_jax.train.scores import Scores
from sere_jax.writing import replacing


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("name", ["x.safetensors", "x.npz", "x.json", "x.pth"])
def test_files_have_the_mode_of_the_umask(tmp_path, umask, name):
    path, tensors = tmp_path / name, {"a": np.zeros(3, np.float32)}
    if name.endswith(".json"):
        write_json(path, {"a": 1})
    elif name.endswith(".pth"):
        pytest.importorskip("torch")
        write_torch(path, {"teacher": tensors}, {})
    else:
        write_tensors(path, tensors, {})
    assert _mode(path) == 0o666 & ~umask
    assert os.listdir(tmp_path) == [name]


def _write_shards(path):
    output = Output(str(path / "set"), {})
    output.write(Shard("x.array_record-00000-of-00001", "train", 0, 1), [("a", b"record")])
    output.finish({})


def _write_source(path):
    (path / "in").mkdir()
    Image.new("RGB", (8, 8)).save(path / "in" / "0.png")
    return f"--source=folder:{path / 'in'}"


BENCH = ["--host_only", "--rounds=1", "--global_size=8", "--local_count=0"]
WRITERS = {
    "records": lambda path: Records(path / "run", after=0).write(1, {"loss": 1.0}),
    "scores": lambda path: Scores(epath.Path(path / "run")).add(1, "knn", {"top1": 0.5}),
    "table": lambda path: table.write(path / "table.json", {"a": 1}),
    "figure": lambda path: canvas.save(Figure(), path / "figures" / "x.png"),
    "shards": _write_shards,
    "check": lambda path: data_check.main([_write_source(path), f"--json={path / 'check.json'}"]),
    "bench": lambda path: data_bench.main(
        [_write_source(path), f"--json={path / 'b.json'}", "--host_only", "--rounds=1", "--global_size=8"]
    ),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_every_writer_s_files_have_the_mode_of_the_umask(tmp_path, umask, writer):
    WRITERS[writer](tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files and {_mode(path) for path in files} == {0o666 & ~umask}
    assert not [path for path in files if "partial" in path.name]


def test_what_cannot_be_replaced_is_written_to(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with replacing(tmp_path / "pipe") as path:
        path.write_text("through")
    assert os.read(reader, 100) == b"through" and os.listdir(tmp_path) == ["pipe"]
    os.close(reader)
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with replacing(tmp_path / "link") as path:
        path.write_text("behind the link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "behind the link"


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "new" / "x.txt"
    with replacing(path) as temporary:
        temporary.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["x.txt"]
