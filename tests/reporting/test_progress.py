"""What a person sees, and the files: no step twice, nothing that is not JSON, losses beside their know-nothing values."""

from __future__ import annotations

import io
import json
import math
import struct
import time
from pathlib import Path

import jax
import pytest
import rich.console
from tensorboardX.proto import event_pb2

from sere_jax.reporting import display, progress
from sere_jax.reporting.display import Panel
from sere_jax.reporting.progress import Progress
from sere_jax.reporting.records import Records

REFERENCES = {"dino": math.log(65536), "spatial": math.log(169)}


def lines(directory: Path) -> list[dict]:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def console(terminal: bool = False) -> rich.console.Console:
    return rich.console.Console(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None)


def shown(screen: rich.console.Console) -> str:
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


def test_records_drop_what_is_done_again(tmp_path: Path):
    records = Records(tmp_path, after=0)
    for step in (2, 4, 6):
        records.write(step, {"loss": step / 2, "step": -1.0})
    with open(tmp_path / "metrics.jsonl", "a") as file:  # killed while it wrote
        file.write('{"step": 8, "lo')
    records = Records(tmp_path, after=4)
    assert [line["step"] for line in lines(tmp_path)] == [2, 4]
    records.write(6, {"loss": float("nan"), "norm": float("inf")})
    assert [line["step"] for line in lines(tmp_path)] == [2, 4, 6], "a line is on disk at once"
    assert lines(tmp_path)[-1]["loss"] is None and lines(tmp_path)[-1]["norm"] is None
    assert lines(tmp_path)[0]["loss"] == 1.0 and lines(tmp_path)[0]["time"] == pytest.approx(time.time(), abs=100)
    records.close()


def test_plain_lines_tell_the_losses_beside_their_references():
    screen = console()
    with Progress(None, total_steps=100, steps_per_epoch=10, references=REFERENCES, live=False, console=screen) as report:
        report.start(0)
        report.advance(1)
        report.advance(2)
        speed = {"speed/images_per_second": 212.4, "speed/data_wait": 0.031, "speed/seconds_per_step": 0.1}
        speed |= {"speed/mfu": 0.4321, "speed/seconds_p95": 0.2, "memory/host_peak_gib": 1.5}
        report.write(2, {"teacher_entropy": 6.5, "spatial": 4.98765, "dino": 9.5, "bad_steps": 0.0, "knn/top1": 0.25, **speed})
        report.write(4, {"dino": float("nan"), "bad_steps": 2.0})
        report.note("saved [not markup]")
    first, second, third = shown(screen).splitlines()
    assert "step 2/100  epoch 0.20/10  0:00:0" in first and "left  212 images/s  waiting for data 3%  MFU 43.2%  " in first
    assert first.endswith("dino 9.5000 (11.0904)  spatial 4.9877 (5.1299)  teacher_entropy 6.5000  knn/top1 0.2500")
    assert "dino nan (11.0904)  bad_steps 2" in second and third.endswith("saved [not markup]")


def test_the_live_display_shows_place_losses_and_the_rest():
    screen = console(terminal=True)
    with Progress(None, total_steps=100, steps_per_epoch=10, references=REFERENCES, live=True, console=screen) as report:
        report.start(0)
        assert "before the first step" in _picture(report, screen)
        for step in range(1, 21):
            report.advance(step)
            report.write(step, {"dino": 11.1 - step / 10, "spatial": 5.2, "teacher_entropy": 6.5, "center_norm": 0.2})
        report.write(20, {"knn/top1": 0.25, "speed/images_per_second": 3.25, "speed/data_wait": 0.5, "speed/seconds_per_step": 1.0})
        report.write(22, {"dino": 9.25})
        with report.busy("evaluating"):
            assert "evaluating (0 s)" in _picture(report, screen)
        picture = _picture(report, screen)
        report.note("a note")
    assert "step 20/100  epoch 2.00/10" in picture and "3.25 images/s  waiting for data 50%" in picture
    dino = next(line for line in picture.splitlines() if line.strip().startswith("dino"))
    assert dino.split()[:4] == ["dino", "9.2500", "11.0904", "-1.840"] and "█" in dino and "▁" in dino
    assert "teacher_entropy" in picture and "center_norm" in picture and "0.2500 (step 20)" in picture
    assert "a note" in shown(screen)


def _picture(report: Progress, screen: rich.console.Console) -> str:
    with screen.capture() as capture:
        screen.print(report._draw())
    return capture.get()


def test_long_business_is_announced_in_plain_lines(monkeypatch: pytest.MonkeyPatch):
    screen = console()
    with Progress(None, total_steps=10, live=False, console=screen) as report:
        with report.busy("blinking"):
            pass
        monkeypatch.setattr(progress, "_ANNOUNCED_AFTER_SECONDS", 0.05)
        with report.busy("compiling"):
            time.sleep(0.3)
    first, second = shown(screen).splitlines()
    assert first.endswith("compiling ...") and "compiling took 0." in second


def test_time_left_is_by_the_steps_after_the_first(monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    panel = Panel(1000, 0, {})
    panel.start(500)
    now[0] = 300.0  # compilation
    panel.advance(501)
    assert "left" not in panel.line(501, {})
    now[0] = 310.0
    panel.advance(511)
    assert panel.line(511, {}) == "step 511/1,000  0:08:09 left"


@pytest.mark.parametrize(("seconds", "words"), [(0.0, "0:00:00"), (59.6, "0:01:00"), (3723.0, "1:02:03"), (90061.0, "1d 01:01:01")])
def test_durations(seconds: float, words: str):
    assert display.duration(seconds) == words


def test_curves_of_odd_values():
    assert display._curve([]) == "" and display._curve([float("nan")]) == ""
    assert display._curve([2.0, 2.0]) == "▁▁" and display._curve([0.0, float("inf"), 1.0]) == "▁█"


def test_tensorboard_has_each_value_and_voids_what_is_done_again(tmp_path: Path):
    for start, steps in ((0, (2, 4)), (2, (4, 6))):
        with Progress(str(tmp_path), total_steps=10, live=False, console=console()) as report:
            report.start(start)
            for step in steps:
                report.write(step, {"loss": float(step + start)})
    events = [_events(path) for path in sorted((tmp_path / "tensorboard").iterdir())]
    found = [[(event.step, event.summary.value[0].simple_value) for event in file if event.summary.value] for file in events]
    assert found == [[(2, 2.0), (4, 4.0)], [(4, 6.0), (6, 8.0)]]
    assert any(event.session_log.status == event_pb2.SessionLog.START and event.step == 3 for event in events[1])
    assert [line["step"] for line in lines(tmp_path)] == [2, 4, 6] and lines(tmp_path)[1]["loss"] == 6.0


def _events(path: Path) -> list[event_pb2.Event]:
    data, found = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        found.append(event_pb2.Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return found


def test_other_processes_show_and_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    screen = console(terminal=True)
    with Progress(str(tmp_path), total_steps=10, live=True, console=screen) as report:
        report.start(0)
        report.advance(1)
        report.write(1, {"loss": 1.0})
        report.note("x")
        with report.busy("evaluating"):
            pass
    assert not list(tmp_path.iterdir()) and shown(screen) == ""
    assert list(progress.track(range(3), "work")) == [0, 1, 2]


def test_long_work_tells_its_time_left_without_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress, "_PLAIN_EVERY_SECONDS", 0.0)
    assert list(progress.track(iter("ab"), "reading", total=4)) == ["a", "b"]
    assert "reading: 2 of 4, 0:00:00 left" in capsys.readouterr().out
    assert list(progress.track(iter("ab"), "reading")) == ["a", "b"]
    assert capsys.readouterr().out.endswith("reading: 2\n")
