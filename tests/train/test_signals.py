"""Signals at every moment of a run: one process and two, before the first step, in evaluations, in the last save, twice."""

from __future__ import annotations

import functools
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sere_jax.train import checkpoint
from sere_jax.train.signals import Interrupted, Signals
from tests.processes import free_port
from tests.train.test_fit import ROOT, assert_same_end, read_until, run, start_toy


def start_pair(directory: Path, *arguments: str) -> list[subprocess.Popen[str]]:
    port = free_port()
    return [start_toy(directory, *arguments, f"port={port}", f"rank={rank}") for rank in (0, 1)]


def end(pair: list[subprocess.Popen[str]], timeout: float = 60) -> list[str]:
    outputs = [process.communicate(timeout=timeout)[0] for process in pair]
    assert [process.returncode for process in pair] == [0] * len(pair), "\n".join(outputs)
    assert "Traceback" not in "".join(outputs), "\n".join(outputs)
    return outputs


def test_two_processes_heed_a_signal_from_before_the_first_step_of_a_resumed_run(tmp_path: Path):
    """To one of them, before it has joined: it is passed on to JAX, and both stop where the checkpoint is."""
    run(tmp_path / "checkpoints", 12)
    pair = start_pair(tmp_path, "total=400", "delay=0.02", "every=1000", "compile=3")
    read_until(pair[1], "starting")
    pair[1].terminate()
    outputs = end(pair)
    step = checkpoint.read_state(tmp_path)[1]
    assert all(f"after step {step} of 400" in output for output in outputs), "\n".join(outputs)
    assert 12 <= step <= 13, "the first question after the notice is answered with yes"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("compile=3",), "compiling"),
        (("delay=0.05",), "step 4/"),
        (("evaluate=4", "evaluation=3"), "evaluating 4"),
        (("every=1",), "step 2/"),
    ],
    ids=["compiling", "training", "evaluating", "saving"],
)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1], ids=lambda number: number.name)
@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
def test_two_processes_stop_whatever_they_do(tmp_path: Path, arguments: tuple[str, ...], word: str, number: signal.Signals, twice: bool):
    if twice and number == signal.SIGINT:
        pytest.skip("that ends the process at once")
    pair = start_pair(tmp_path, "total=400", "delay=0.02", *arguments)
    read_until(pair[0], word)
    for process in pair if twice else pair[1:]:
        process.send_signal(number)
    outputs = end(pair)
    step = checkpoint.read_state(tmp_path)[1]
    assert step < 400 and all(f"after step {step} of 400" in output for output in outputs), "\n".join(outputs)
    end(start_pair(tmp_path, f"total={step + 4}"))
    assert checkpoint.read_state(tmp_path)[1] == step + 4


@pytest.mark.parametrize("word", ["starting", "compiling"])
def test_a_signal_before_the_first_step_stops_at_once_and_answers_at_once(tmp_path: Path, word: str):
    process = start_toy(tmp_path, "total=400", "delay=0.02", "compile=2")
    read_until(process, word)
    process.send_signal(signal.SIGINT)
    # A thread answers while the main thread stops: either line may come first.
    output = read_until(process, "SIGINT") + "".join(end([process]))
    assert "stopping before the first step; nothing has to be saved (Ctrl-C again ends now)" in output
    assert "stopped by SIGINT before the first step" in output and "step 1/" not in output


def test_the_second_ctrl_c_ends_now_even_while_compiling(tmp_path: Path):
    process = start_toy(tmp_path, "compile=60")
    read_until(process, "compiling")
    process.send_signal(signal.SIGINT)
    read_until(process, "Ctrl-C again ends now")
    process.send_signal(signal.SIGINT)  # what a launcher forwards in addition to the terminal's own
    time.sleep(0.7)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=5)
    assert process.returncode == 130 and "ended at once" in output and "Traceback" not in output


def test_a_signal_during_the_last_save_lets_the_run_finish(tmp_path: Path):
    process = start_toy(tmp_path, "total=12", "evaluate=100", "evaluation=1", "every=1000")
    read_until(process, "step 12/12")
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGTERM):
        process.send_signal(number)
    end([process])
    assert_same_end(tmp_path, 12)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGHUP"])
def test_a_signal_after_the_end_of_a_run_does_not_spoil_its_exit_code(name: str):
    program = f"""
import os, signal
from sere_jax.train.signals import Signals
with Signals(ends_process=True):
    pass
os.kill(os.getpid(), signal.{name})
print("ended")
"""
    process = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (process.returncode, process.stdout, process.stderr) == (0, "ended\n", "")


def test_train_ignores_late_signals_while_python_ends():
    """Python gives signals with handlers back to the system then, which would end the process by them."""
    program = """
import atexit, runpy, signal, sys
atexit.register(lambda: print([signal.getsignal(number).name for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)]))
sys.argv = ["train.py", "--help"]
runpy.run_path("train.py", run_name="__main__")
"""
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    output = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60).stdout
    assert output.splitlines()[-1] == str(["SIG_IGN"] * 3)


@pytest.mark.slow
def test_a_closed_terminal_and_a_closed_pipe_do_not_keep_the_run_from_saving(tmp_path: Path):
    """SIGHUP from a terminal that is gone; and `| tee log`, whose tee dies of the same Ctrl-C."""
    ours, theirs = pty.openpty()
    command = [sys.executable, str(ROOT / "tests" / "train" / "toy_run.py"), str(tmp_path / "a"), "total=400", "delay=0.02"]
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=theirs, start_new_session=True)
    os.close(theirs)
    while b"step 8/400" not in os.read(ours, 4096):
        assert select.select([ours], [], [], 60)[0]
    os.close(ours)
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 0 and checkpoint.read_state(tmp_path / "a")[1] >= 8
    piped = start_toy(tmp_path / "b", "total=400", "delay=0.02")
    read_until(piped, "step 8/400")
    assert piped.stdout is not None
    piped.stdout.close()
    piped.send_signal(signal.SIGINT)
    assert piped.wait(60) == 0 and 8 <= checkpoint.read_state(tmp_path / "b")[1] < 400


def test_handlers_are_put_back_and_other_threads_have_none(request: pytest.FixtureRequest):
    # Under nohup SIGHUP is ignored from the start, and stays so.
    request.addfinalizer(functools.partial(signal.signal, signal.SIGHUP, signal.signal(signal.SIGHUP, signal.SIG_DFL)))
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    with Signals() as signals:
        signals.join(1)
        os.kill(os.getpid(), signal.SIGHUP)
        assert signals.waiting() and signals.reached() and signals.name == "SIGHUP"
        with pytest.raises(Interrupted), signals.interrupting():
            raise AssertionError("it must not begin")
    assert before == {number: signal.getsignal(number) for number in before}
    answers: list[bool] = []

    def elsewhere() -> None:
        with Signals() as signals:
            answers.append(signals.reached())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert answers == [False]


def test_a_library_raises_at_the_second_ctrl_c(capfd: pytest.CaptureFixture[str]):
    with pytest.raises(KeyboardInterrupt), Signals() as signals:
        signals.join(1)
        signals.begin()
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.6)
        assert signals.waiting()
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    assert capfd.readouterr().err == "SIGINT: stopping after this step, then saving (Ctrl-C again ends now)\n"
