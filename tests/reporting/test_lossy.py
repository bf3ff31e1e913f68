"""Programs whose standard output is full, closed, or a pipe that nobody reads: they go on, say so, and write it nowhere else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FRONT_DOOR = ["-m", "sere_jax", "--help"]
_GONE = "standard output {} ({}); the program goes on without it\n"


def run(arguments: list[str], redirection: str) -> subprocess.CompletedProcess[str]:
    command = ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_a_full_disk_under_the_front_door():
    ended = run(FRONT_DOOR, ">/dev/full")
    assert (ended.returncode, ended.stderr) == (0, _GONE.format("cannot be written", "No space left on device"))


def test_a_pipe_that_nobody_reads_under_the_front_door():
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run([sys.executable, *FRONT_DOOR], cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (0, _GONE.format("is gone", "Broken pipe"))


@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", ">/dev/full 2>/dev/full"])
def test_no_redirection_ends_the_front_door(redirection):
    ended = run(FRONT_DOOR, redirection)
    assert ended.returncode == 0 and "Error" not in ended.stderr and "Exception" not in ended.stderr


@pytest.mark.parametrize("program", ["train.py", "eval.py"])
@pytest.mark.parametrize("redirection", [">/dev/full", ">&-"])
def test_mistakes_are_told_where_standard_output_is_lost(program, redirection, tmp_path):
    directory = "configs" if program == "train.py" else "configs/eval"
    config = "quickstart.py" if program == "train.py" else "knn.py"
    (tmp_path / "file").touch()
    ended = run([program, f"--config={directory}/{config}", f"--workdir={tmp_path / 'file'}", "--config.no_such_key=1"], redirection)
    assert ended.returncode == 2 and "no_such_key" in ended.stderr and "Traceback" not in ended.stderr


_FILES = """
import os, sys
from sere_jax.reporting import lossy
lossy.hold_descriptors()
from sere_jax.train.signals import Signals
with Signals():
    from sere_jax.reporting import program
    program.set_up_output()
    with open(sys.argv[1], "w") as file:
        print("said"), print("said", file=sys.stderr), sys.stdout.flush()
        os.write(1, b"by a library"), os.write(2, b"by a library")
        file.write("the file")
os.unlink(sys.argv[1] + ".running")
"""


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_what_is_printed_goes_into_no_file_that_is_opened_later(tmp_path, redirection):
    """A closed standard output leaves its number free, and the next file gets it."""
    path = tmp_path / "x"
    path.with_name("x.running").touch()
    run(["-c", _FILES, str(path)], redirection)
    assert path.read_text() == "the file" and not path.with_name("x.running").exists()
