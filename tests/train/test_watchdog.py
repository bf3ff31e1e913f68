"""A step that does not end is told with the stacks of all threads, and ends the process after a second limit."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import pytest

from sere_jax.train import peers, watchdog
from sere_jax.train.checkpoint import find_step
from sere_jax.train.watchdog import Watchdog
from tests.commands.test_pretrain import DRIVER
from tests.reliability.runs import Run


def test_a_stuck_step_shows_where_and_ends_the_process(capsys: pytest.CaptureFixture):
    codes: list[int] = []
    left = threading.Event()
    with Watchdog(0.2, leave=lambda code: (codes.append(code), left.set())) as watching:
        watching.step(7)
        assert left.wait(10)  # this line is what the main thread is doing
    err = capsys.readouterr().err
    assert codes == [1]
    assert err.count("this line is what the main thread is doing") == 2
    assert err.index("step 7 has taken 0 s; run.stuck_after_seconds is 0.2\nthread MainThread:") == 0
    assert "twice run.stuck_after_seconds: this process ends. The same command resumes" in err


def test_a_coordinator_that_stands_still_does_not_hold_it_up(monkeypatch: pytest.MonkeyPatch):
    never, left = threading.Event(), threading.Event()
    monkeypatch.setattr(peers, "announced", lambda error: never.wait())
    monkeypatch.setattr(watchdog, "_ANNOUNCE_SECONDS", 0.1)
    with Watchdog(0.2, leave=lambda code: left.set()) as watching:
        watching.step(7)
        assert left.wait(10)
    never.set()


def test_steps_and_pauses_keep_it_quiet(capsys: pytest.CaptureFixture):
    codes: list[int] = []
    with Watchdog(0.5, leave=codes.append) as watching:
        for step in range(12):
            watching.step(step)
            time.sleep(0.1)
        with watching.paused():
            time.sleep(1.2)
    with Watchdog(0.0, leave=codes.append):
        time.sleep(0.05)
    assert codes == [] and capsys.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_run_of_two_processes_of_which_one_stands_still_ends(tmp_path: Path, stopped: int):
    """The survivor prints what its threads do after the limit, and ends after twice the limit: before the silent one counts as lost."""
    limit = 10
    settings = DRIVER | {"data.batch_size": 32, "run.checkpoint_every_steps": 50, "run.stuck_after_seconds": limit}
    run = Run(tmp_path, steps=100_000, processes=2, settings=settings)
    start = run.start("run")
    latest = time.monotonic() + 300
    while not (tmp_path / "run" / "checkpoints" / "50").exists() and time.monotonic() < latest:
        assert start.running(), run.said("run")
        time.sleep(0.1)
    survivor = start[1 - stopped]
    start[stopped].send_signal(signal.SIGSTOP)
    began = time.monotonic()
    code = survivor.wait(timeout=120)
    seconds = time.monotonic() - began
    start.kill()
    log = (tmp_path / "run.log").read_text()
    assert code == 1 and limit * 1.5 < seconds < 2 * limit + 6, (code, seconds, log[-3000:])
    assert f"run.stuck_after_seconds is {limit}\nthread MainThread:" in log and "meter.add(" in log
    assert "twice run.stuck_after_seconds: this process ends. The same command resumes\nthread MainThread:" in log
    assert start.orphans() == [] and find_step(tmp_path / "run")[1] % 50 == 0
