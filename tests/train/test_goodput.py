"""The account of a run's time, against a hand-made history."""

from __future__ import annotations

import pytest
from etils import epath

from sere_jax.train.goodput import Goodput


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def directory(tmp_path):
    return epath.Path(tmp_path)


def test_a_stop_costs_its_time_down_its_start_and_the_steps_trained_again(directory):
    clock = Clock()
    first = Goodput(directory, clock)
    first.start(0)
    clock.now += 10  # compiling
    assert first.first_step() == ""
    clock.now += 40
    first.saved(20, 40.0)  # 2 s a step
    assert first.share() == pytest.approx(40 / 50)
    clock.now += 40
    first.alive(40, 80.0)  # more than 30 s after the last note: written; then killed, 20 steps after the checkpoint
    clock.now += 100
    second = Goodput(directory, clock)
    second.start(20)
    clock.now += 10
    assert second.first_step() == "stop         killed at step 40: cost 150 s (down 100, first step after 10, steps trained again 40)"
    clock.now += 60
    second.saved(50, 60.0)
    # 40 s of the first 20 steps and 60 s of the other 30, of 260 s
    assert second.share() == pytest.approx(100 / 260)
    assert second.summary() == "goodput      38.5 % of 0.07 hours since the first start were steps; 1 stop cost 150 s"


def test_a_signal_is_named_and_a_damaged_account_begins_anew(directory):
    clock = Clock()
    account = Goodput(directory, clock)
    account.start(0)
    clock.now += 5
    account.saved(5, 5.0, why="SIGTERM")
    clock.now += 5
    again = Goodput(directory, clock)
    again.start(5)
    assert again.first_step() == "stop         SIGTERM at step 5: cost 5 s (down 5, first step after 0, steps trained again 0)"
    (directory / "goodput.json").write_text("{")
    anew = Goodput(directory, clock)
    anew.start(5)
    assert anew.first_step() == "" and anew.share() == 0.0


def test_a_restart_behind_the_newest_checkpoint_takes_the_seconds_of_its_own(directory):
    clock = Clock()
    account = Goodput(directory, clock)
    account.start(0)
    for step in (10, 20, 30):
        clock.now += 10
        account.saved(step, float(step))
    back = Goodput(directory, clock)
    back.start(20)  # that of step 30 was damaged
    clock.now += 10
    assert back.share() == pytest.approx(20 / 40)
    assert "steps trained again 10" in back.first_step()


def test_the_account_is_there_before_the_first_checkpoint_but_in_no_workdir_that_vanished(tmp_path):
    """A stop in the first steps is remembered although `checkpoints/` is made by the save after it."""
    clock = Clock()
    workdir = epath.Path(tmp_path) / "run"
    Goodput(workdir / "checkpoints", clock).saved(3, 6.0, "SIGTERM")
    assert not workdir.exists()
    workdir.mkdir()
    Goodput(workdir / "checkpoints", clock).saved(3, 6.0, "SIGTERM")
    clock.now += 5
    second = Goodput(workdir / "checkpoints", clock)
    second.start(3)
    assert second.first_step() == "stop         SIGTERM at step 3: cost 5 s (down 5, first step after 0, steps trained again 0)"
