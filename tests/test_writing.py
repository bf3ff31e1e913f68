"""Files appear whole or not at all, with the mode that the umask gives, where their path says, or one line says why not."""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from matplotlib.figure import Figure
from PIL import Image

from sere_jax.__main__ import main
from sere_jax.commands import data_bench, data_check
from sere_jax.config.check import workdir_mistakes
from sere_jax.config.sources import source_mistakes
from sere_jax.data.prepare.shards import Output, Shard
from sere_jax.data.sources.open import SourceError, folders, open_source
from sere_jax.evals.figures import canvas
from sere_jax.interop.files import write_tensors
from sere_jax.interop.torch_file import write_torch
from sere_jax.reporting import table
from sere_jax.reporting.records import Records
from sere_jax.train.checkpoint import CheckpointError, find_step
from sere_jax.train.checkpoint_manager import Checkpoints
from sere_jax.train.scores import Scores
from sere_jax.writing import WriteError, place, replacing, writing_to
from tests.data.images.images import encode, gradient
from tests.house import PACKAGE


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("name", ["x.safetensors", "x.npz", "x.pth"])
def test_files_have_the_mode_of_the_umask(tmp_path, umask, name):
    path, tensors = tmp_path / name, {"a": np.zeros(3, np.float32)}
    if name.endswith(".pth"):
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


def test_a_path_means_one_place(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert place("~/a/../run") == tmp_path / "home" / "run"
    assert place("run/") == place("./run") == place(tmp_path / "run") == tmp_path / "run"


def test_a_parent_behind_a_link_is_the_operating_system_s(tmp_path, monkeypatch):
    """`link/../x` is beside the directory that the link leads to, for `open` and so for every reader and writer here."""
    (tmp_path / "disk" / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "inner")
    monkeypatch.chdir(tmp_path)
    expected = tmp_path / "disk" / "photos"
    expected.mkdir()
    (expected / "0.png").write_bytes(encode(gradient(20, 30), "PNG"))
    (expected / "list").write_text("0.png\n")
    assert os.path.samefile("link/../photos", expected) and place("link/../photos") == expected
    assert place("link/run") == tmp_path / "link" / "run"  # without `..`, links stay as they are written
    for spec in ("folder:link/../photos", "list:link/../photos/list"):
        assert source_mistakes("data.source", spec) == [] and len(open_source(spec)) == 1
    assert folders("folder:link/../photos") == [str(expected)]
    assert workdir_mistakes("link/../photos/run", {"data.source": f"folder:{expected}"})
    assert Checkpoints("link/../photos", every_steps=1).directory == place(expected)
    with pytest.raises(CheckpointError, match=f"^no checkpoint in {expected}"):
        find_step("link/../photos")


def test_an_unknown_user_is_a_mistake_and_no_traceback(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    [line] = workdir_mistakes("~nobody-of-that-name/run", {"data.source": "folder:~nobody-of-that-name"})
    assert line == (
        "--workdir: found '~nobody-of-that-name/run', expected a directory; there is no user 'nobody-of-that-name'. "
        "A directory of that name is ./~nobody-of-that-name/run"
    )
    assert workdir_mistakes("./~nobody-of-that-name/run") == []
    with pytest.raises(SourceError, match="does not exist"):
        open_source("folder:~nobody-of-that-name")
    with pytest.raises(CheckpointError, match="it does not exist"):
        find_step("~nobody-of-that-name/run")
    (tmp_path / "~kept-here").mkdir()
    assert workdir_mistakes("~kept-here/run") == [] and place("~kept-here") == tmp_path / "~kept-here"


@pytest.mark.parametrize(
    "arguments",
    [
        ["ablate", "--table=8", "--data=bundled", "--workdir=PATH"],
        ["prepare", "--source=folder:.", "--output=PATH"],
        ["extract", "--checkpoint=none", "--data=folder:.", "--output=PATH"],
        ["export", "--checkpoint=none", "--output=PATH.safetensors"],
        ["check", "--source=folder:.", "--json=PATH.json"],
        ["bench", "--source=folder:.", "--json=PATH.json", *BENCH],
    ],
    ids=lambda arguments: arguments[0],
)
def test_no_command_writes_to_the_home_of_an_unknown_user(tmp_path, monkeypatch, capsys, arguments):
    """It would write to a directory whose name begins with `~`, below the current one."""
    (tmp_path / "0.png").write_bytes(encode(gradient(20, 30), "PNG"))
    monkeypatch.chdir(tmp_path)
    try:
        code = main([argument.replace("PATH", "~nobody-of-that-name/x") for argument in arguments])
    except SystemExit as ended:  # argparse refuses the argument itself
        code = ended.code
    assert code == 2
    assert "there is no user 'nobody-of-that-name'" in capsys.readouterr().err.splitlines()[-1]
    assert os.listdir(tmp_path) == ["0.png"]


def test_only_one_function_says_where_a_path_lies():
    calls = re.compile(r"expanduser|abspath\(|\.absolute\(")
    elsewhere = {path.relative_to(PACKAGE).parts[0] for path in PACKAGE.rglob("*.py") if calls.search(path.read_text())}
    assert elsewhere == {"writing.py"}


def test_commands_read_and_write_below_the_home_directory(tmp_path, monkeypatch, capsys):
    """A shell leaves `~` as it is in --name=~/path."""
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "0.png").write_bytes(encode(gradient(20, 30), "PNG"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main(["check", "--source=folder:~/photos", "--json=~/reports/a.json"]) == 0
    assert main(["check", "--source=folder:photos", "--json=reports/b.json"]) == 0
    assert main(["prepare", "--source=folder:~/photos", "--output=~/prepared", "--workers=1"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "prepared", "reports"]
    assert len(list((tmp_path / "reports").iterdir())) == 2
    assert main(["check", "--source=folder:~/photos", f"--json={photos}/0.png/report.json"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"check: {photos}/0.png: nothing can be written there (File exists); expected a directory to write to"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_fails_later_is_one_line(tmp_path, code):
    with pytest.raises(WriteError, match=f"^{tmp_path}: nothing can be written there \\({os.strerror(code)}\\)"), writing_to(tmp_path):
        raise OSError(code, os.strerror(code))


def test_a_directory_that_vanishes_is_one_line(tmp_path):
    with pytest.raises(WriteError, match="No such file or directory"), writing_to(tmp_path / "run") as directory:
        directory.rmdir()
        (directory / "table.json").write_text("{}")


def test_errors_of_other_files_are_not_the_directorys(tmp_path):
    with pytest.raises(FileNotFoundError), writing_to(tmp_path / "run"):
        (tmp_path / "image.png").read_bytes()
    with pytest.raises(OSError, match="broken"), writing_to(tmp_path / "run"):
        raise OSError("broken")
