"""A run outlives whoever watched it: a closed pipe, a closed terminal, a full disk. All of them are real here."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import rich.console

from configs.ablation import TABLES
from sere_jax.__main__ import main
from sere_jax.commands import ablation_table
from sere_jax.commands.ablation_table import Measured
from sere_jax.reporting import program
from sere_jax.reporting.lossy import LossyStream
from sere_jax.reporting.progress import Progress
from tests.full_disk import no_file_above

ROOT = Path(__file__).parent.parent.parent


def report_ten_steps(progress: Progress) -> None:
    progress.start(0)
    for step in range(1, 11):
        progress.advance(step)
        progress.write(step, {"loss": float(step), "note": 0.5})
        progress.note("x" * 500)


def test_a_run_goes_on_when_its_pipe_is_closed(tmp_path: Path):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as stream:
        console = rich.console.Console(file=LossyStream(stream))
        with Progress(str(tmp_path), total_steps=10, live=False, console=console) as progress:
            report_ten_steps(progress)
        stream.write("others who write there do no harm either")
        stream.flush()
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [*range(1, 11)]


def test_a_run_goes_on_when_its_terminal_is_closed(tmp_path: Path):
    terminal, program = os.openpty()
    with open(program, "w") as stream:
        console = rich.console.Console(file=LossyStream(stream), width=80)
        with Progress(str(tmp_path), total_steps=10, live=True, console=console) as progress:
            progress.start(0)
            progress.note("while it is watched")
            seen = b""
            while b"while it is watched" not in seen:
                seen += os.read(terminal, 4096)
            os.close(terminal)
            report_ten_steps(progress)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 10


_PRINT_MUCH = """
import sys
import types
from sere_jax.reporting import screen
console = screen.stdout()
for number in range(2000):
    console.print(f"line {number} {'x' * 100}")
print("all of it", file=sys.stderr)
"""


def test_a_program_whose_output_goes_to_head_ends_well():
    head = subprocess.Popen(["head", "-n1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert head.stdin is not None
    program = subprocess.run([sys.executable, "-c", _PRINT_MUCH], cwd=ROOT, stdout=head.stdin, stderr=subprocess.PIPE, timeout=60)
    assert head.communicate()[0].startswith(b"line 0 x")
    assert program.returncode == 0
    assert program.stderr == b"standard output is gone (Broken pipe); the program goes on without it\nall of it\n"


_NAME, _ESCAPED = "caf\udce9 \u00e9.jpg", {"utf-8": "caf\\udce9 \u00e9.jpg", "ascii": "caf\\udce9 \\xe9.jpg"}


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_names_of_any_bytes_are_printed_as_escapes(encoding: str, monkeypatch: pytest.MonkeyPatch):
    """Names of files may hold bytes that are not UTF-8, and `print` raises for them. All programs print by one of these ways."""
    lossy, plain = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    console = rich.console.Console(file=LossyStream(lossy), width=200)
    console.print(_NAME)
    lossy.flush()
    monkeypatch.setattr(sys, "stdout", plain)
    assert main(["--help"]) == 0  # the front door prepares the output
    plain.seek(0)
    plain.truncate()
    print(_NAME, flush=True)
    assert lossy.buffer.getvalue() == plain.buffer.getvalue() == f"{_ESCAPED[encoding]}\n".encode(encoding)


def test_an_ablation_s_table_names_its_command_whatever_its_bytes(tmp_path: Path, capsys: pytest.CaptureFixture):
    rows = [Measured("image", 0, "rows/x", 5, 2.0, {"k-NN top-1, cls": 50.0})]
    ablation_table.publish(TABLES[8], 8, rows, note="n", directory=tmp_path, about={"command": f"ablate --data=folder:{_NAME}"})
    assert _ESCAPED["utf-8"] in (tmp_path / "table8.md").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "table8.json").read_text())["command"].endswith(_NAME)


def test_a_full_disk_under_standard_output_is_borne(tmp_path: Path):
    stream = open("/dev/full", "w")  # noqa: SIM115  # closing it fails too, as it should
    with Progress(str(tmp_path), total_steps=10, live=False, console=rich.console.Console(file=LossyStream(stream))) as progress:
        report_ten_steps(progress)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 10
    with pytest.raises(OSError):
        stream.close()


def test_logs_on_a_full_disk_are_lost_with_one_warning_each(tmp_path: Path):
    shown = io.StringIO()
    with Progress(str(tmp_path), total_steps=2000, live=False, console=rich.console.Console(file=shown, width=200)) as progress:
        progress.start(0)
        with no_file_above(4096):
            for step in range(1, 501):  # both files outgrow 4 kB, and Python's buffers of 8 kB
                progress.write(step, {"loss": 0.5})
        progress.write(501, {"loss": 0.5})  # there is space again
    warnings = [line for line in shown.getvalue().splitlines() if "cannot be written" in line]
    assert len(warnings) == 2, warnings
    assert "metrics.jsonl" in warnings[0] + warnings[1] and "tensorboard" in warnings[0] + warnings[1]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]  # no line is torn
    assert lines[0]["step"] == 1 and lines[-1]["step"] == 501, "what comes after the disk was full is written"


def test_logs_are_opened_again_when_a_disk_that_was_full_from_the_start_has_space(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "loss": 1.0}\n{"step": 9, "loss": 1.0}\n')
    shown = io.StringIO()
    with Progress(str(tmp_path), total_steps=20, live=False, console=rich.console.Console(file=shown, width=200)) as progress:
        with no_file_above(0):
            progress.start(8)
            progress.write(9, {"loss": 0.5})
        assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2  # nothing is lost of the old file
        for step in (10, 11):
            progress.write(step, {"loss": 0.5})
    assert shown.getvalue().count("metrics.jsonl cannot be written") == 1
    lines = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [3, 10, 11]  # step 9 of the earlier start is repeated, and its new line fell on the full disk
    assert max(path.stat().st_size for path in (tmp_path / "tensorboard").iterdir()) > 50


def test_a_workdir_that_vanished_is_not_made_again_by_its_logs(tmp_path: Path):
    with Progress(str(tmp_path / "run"), total_steps=10, live=False, console=rich.console.Console(file=io.StringIO())) as progress:
        report_ten_steps(progress)
    assert not (tmp_path / "run").exists()


def test_stacks_of_closed_event_loops_are_left_out_and_no_others(monkeypatch: pytest.MonkeyPatch):
    """TensorStore's threads answer Orbax's loop after a failed save, and Python reports each answer with its stack."""
    seen: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: seen.append(str(unraisable.exc_value)))
    for _ in range(2):
        program.set_up_output()
    loop = asyncio.new_event_loop()
    loop.close()
    for call in (lambda: loop.call_soon_threadsafe(print), lambda: 1 / 0):
        try:
            call()
        except Exception as error:
            sys.unraisablehook(types.SimpleNamespace(exc_value=error))
    assert seen == ["division by zero"]


def test_errors_of_arrays_that_nobody_asks_for_are_left_out_and_no_others(caplog: pytest.LogCaptureFixture):
    """A save onto a full disk fails for many arrays, and asyncio logs those that were not awaited."""
    program.set_up_output()
    loop = asyncio.new_event_loop()
    loop.create_future().set_exception(OSError("File too large"))
    gc.collect()
    loop.call_exception_handler({"message": "another"})
    loop.close()
    assert [record.message for record in caplog.records] == ["another"]


def test_a_directory_that_cannot_be_written_is_told_once(tmp_path: Path):
    (tmp_path / "tensorboard").write_text("a file where a directory should be")
    shown = io.StringIO()
    with Progress(str(tmp_path), total_steps=10, live=False, console=rich.console.Console(file=shown, width=200)) as progress:
        report_ten_steps(progress)
    assert shown.getvalue().count("tensorboard cannot be written (File exists)") == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 10
