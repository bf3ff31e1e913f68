"""A step that does not end is told with the stacks of all threads, and ends the process after a second limit."""

from __future__ import annotations

import threading
import time

import pytest

from sere_jax.train.watchdog import Watchdog


def test_a_stuck_step_shows_where_and_ends_the_process(capsys: pytest.CaptureFixture):
    codes: list[int] = []
    left = threading.Event()
    with Watchdog(0.2, leave=lambda code: (codes.append(code), left.set())) as watchdog:
        watchdog.step(7)
        assert left.wait(10)  # this line is what the main thread is doing
    err = capsys.readouterr().err
    assert codes == [1]
    assert err.count("this line is what the main thread is doing") == 2
    assert err.index("step 7 has taken 0 s; run.stuck_after_seconds is 0.2\nthread MainThread:") == 0
    assert "twice run.stuck_after_seconds: this process ends. The same command resumes" in err


def test_steps_and_pauses_keep_it_quiet(capsys: pytest.CaptureFixture):
    codes: list[int] = []
    with Watchdog(0.5, leave=codes.append) as watchdog:
        for step in range(12):
            watchdog.step(step)
            time.sleep(0.1)
        with watchdog.paused():
            time.sleep(1.2)
    with Watchdog(0.0, leave=codes.append):
        time.sleep(0.05)
    assert codes == [] and capsys.readouterr().err == ""
