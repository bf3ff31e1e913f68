"""One run a workdir: the second start names the first; what a killed run left is taken over."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import filelock
import pytest

from configs import quickstart
from sere_jax.commands import pretrain
from sere_jax.train.lock import WorkdirError, locked, owner
from tests.commands.test_pretrain import MICRO

ROOT = Path(__file__).resolve().parents[2]

_HOLD = """
import sys, time
from sere_jax.train.lock import locked
with locked(sys.argv[1]):
    print('held', flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_told_who_writes_and_a_killed_one_leaves_no_lock(tmp_path: Path):
    workdir = tmp_path / "made" / "here"
    first = subprocess.Popen([sys.executable, "-c", _HOLD, str(workdir)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None and first.stdout.readline() == "held\n"
    with (
        pytest.raises(WorkdirError, match=rf"another run writes there \(process {first.pid} on {socket.gethostname()}, since 20"),
        locked(workdir),
    ):
        pass
    config = quickstart.get_config("eval_every_steps=0")
    config.update_from_flattened_dict(MICRO)
    with pytest.raises(WorkdirError, match=f"process {first.pid} on "):
        pretrain.train(config, str(workdir))
    assert os.listdir(workdir) == [".lock"]  # nothing was written by the second
    first.send_signal(signal.SIGKILL)
    first.wait()
    with locked(workdir):
        assert owner(workdir).startswith(f"process {os.getpid()} on ")
    with locked(workdir):  # released at the end of the block
        pass


@pytest.fixture
def without_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a mounted bucket."""

    def acquire(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)


@pytest.mark.usefixtures("without_flock")
def test_without_flock_the_file_is_the_lock(tmp_path: Path):
    with locked(tmp_path):
        assert (tmp_path / ".lock.exists").exists() and f"process {os.getpid()} on" in owner(tmp_path)
        with pytest.raises(WorkdirError, match=f"process {os.getpid()} on {socket.gethostname()}"), locked(tmp_path):
            pass
    assert not (tmp_path / ".lock.exists").exists()


@pytest.mark.usefixtures("without_flock")
def test_without_flock_the_file_of_a_process_that_ended_is_taken_over(tmp_path: Path):
    hold = "import os, sys; from sere_jax.train.lock import locked; lock = locked(sys.argv[1]); lock.__enter__(); os._exit(9)"
    patch = "import filelock; filelock.FileLock.acquire = lambda *a, **k: (_ for _ in ()).throw(NotImplementedError()); "
    assert subprocess.run([sys.executable, "-c", patch + hold, str(tmp_path)], cwd=ROOT).returncode == 9
    assert (tmp_path / ".lock.exists").exists()
    with locked(tmp_path):
        assert f"process {os.getpid()} on" in owner(tmp_path)


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(WorkdirError, match="file/run: nothing can be written there"), locked(tmp_path / "file" / "run"):
        pass


def test_what_a_killed_holder_left_half_written_is_removed(tmp_path: Path):
    """And nothing else: an evaluation may write there at the same time, and files of the user are theirs."""
    ours = [".0123abcd.partial.metrics.jsonl", "checkpoints/.0123abcd.partial.goodput.json", "listings/.ffffffff.partial.a.txt"]
    others = [".0123abcd.partial.report.html", "eval/.0123abcd.partial.knn.json", "checkpoints/.partial.mine", ".0123.partial.config.json"]
    for name in (*ours, *others):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with locked(tmp_path):
        pass
    assert [name for name in (*ours, *others) if (tmp_path / name).exists()] == others
