"""A failure of one process ends the others within seconds, with a sentence each; an error of all is printed once."""

from __future__ import annotations

import threading
import time

import pytest

from sere_jax.train import peers
from sere_jax.train.peers import Peers
from tests.processes import outputs_of_two


class Service:
    """JAX's coordination service in this process, as its client shows it."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.works, self.answers = True, True
        self.barriers: dict[str, threading.Barrier] = {}

    def _check(self) -> None:
        while not self.answers:
            time.sleep(0.01)
        if not self.works:
            raise RuntimeError("UNAVAILABLE: Socket closed")

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None:
        self._check()
        if key in self.values and not allow_overwrite:
            raise RuntimeError("ALREADY_EXISTS: key")
        self.values[key] = value

    def key_value_dir_get(self, directory: str) -> list[tuple[str, str]]:
        self._check()
        return [(key, value) for key, value in self.values.items() if key.startswith(directory)]

    def wait_at_barrier(self, name: str, milliseconds: int) -> None:
        self.barriers.setdefault(name, threading.Barrier(2)).wait(milliseconds / 1000)

    def blocking_key_value_get(self, key: str, milliseconds: int) -> str:
        latest = time.monotonic() + min(milliseconds, 50) / 1000
        while time.monotonic() < latest:
            if not self.works:
                raise RuntimeError("UNAVAILABLE: Socket closed")
            if key in self.values:
                return self.values[key]
            time.sleep(0.005)
        raise RuntimeError("DEADLINE_EXCEEDED: GetKeyValue() timed out")


class Run:
    """Two processes of a run, as threads: what each says, and the exit codes of those that are ended."""

    def __init__(self, limit: float) -> None:
        self.service, self.codes = Service(), {}
        self.peers = [Peers(self.service, rank, 2, limit, leave=lambda code, rank=rank: self._leave(rank, code)) for rank in (0, 1)]
        for one in self.peers:
            one.where, one.started = lambda: "it goes on from step 7", True

    def _leave(self, rank: int, code: int) -> None:
        self.codes[rank] = code
        self.peers[rank]._stop.set()

    def wait(self, count: int) -> None:
        latest = time.monotonic() + 30
        while len(self.codes) < count and time.monotonic() < latest:
            time.sleep(0.01)
        for one in self.peers:
            one._stop.set()


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "GRACE_SECONDS", 0.05)


def test_a_failure_of_one_process_ends_all_with_its_reason(capsys: pytest.CaptureFixture):
    run = Run(limit=30.0)
    for one in run.peers:
        one.start()
    run.peers[0].announce("the disk is full\nmore lines")
    run.peers[1].announce("something that follows from it")
    run.wait(2)
    err = capsys.readouterr().err
    assert run.codes == {0: 1, 1: 1}
    assert "process 0 of 2 ended: the disk is full\nprocess 1 ends too; it goes on from step 7\n" in err
    assert "the disk is full\nmore lines\nprocess 0 ends too" in err and "follows" not in err


def test_a_process_that_ends_by_itself_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(peers, "GRACE_SECONDS", 30.0)
    run = Run(limit=30.0)
    run.peers[1].start()
    run.peers[0].announce("a mistake")
    leaving = threading.Thread(target=run.peers[0].left_by_all)
    leaving.start()
    assert run.peers[1].left_by_all()
    leaving.join()
    run.peers[1].stop()
    assert run.codes == {}


@pytest.mark.parametrize("silent", [0, 1])
def test_a_process_without_a_sign_of_life_is_lost(capsys: pytest.CaptureFixture, silent: int):
    run = Run(limit=0.5)
    if silent == 0:
        run.peers[1].start()
        run.service.answers = False  # a coordinator that was stopped
    else:
        run.service.key_value_set("sere_jax/alive/1", "7")
        run.peers[0].start()
    run.wait(1)
    run.service.answers = True
    assert run.codes.get(1 - silent) == 1
    assert f"process {silent} of 2 was lost: no sign of life for 0.5 s; it goes on from step 7" in capsys.readouterr().err


def test_a_process_that_has_left_or_may_be_compiling_is_not_lost():
    run = Run(limit=0.1)
    for rank in (1, 2):
        run.service.key_value_set(f"sere_jax/alive/{rank}", "7")
    run.service.key_value_set("sere_jax/left/1", "1")
    watching = run.peers[0]
    watching.started = False
    beats = run.service.key_value_dir_get("sere_jax/alive")
    assert watching._silent(beats) == []
    time.sleep(0.15)
    assert watching._silent(beats) == []
    watching.started = True
    assert watching._silent(beats) == ["2"]


def test_a_coordinator_that_died_is_told(capsys: pytest.CaptureFixture):
    run = Run(limit=30.0)
    run.peers[1].start()
    run.service.works = False
    run.wait(1)
    assert run.codes == {1: 1}
    assert "process 0 of 2 was lost; it goes on from step 7" in capsys.readouterr().err


def test_processes_meet_as_often_as_they_ask():
    run, came = Run(limit=30.0), []

    def slow() -> None:
        for _ in range(2):
            time.sleep(0.3)
            came.append("slow")
            run.peers[1].meet()

    thread = threading.Thread(target=slow)
    thread.start()
    for _ in range(2):
        run.peers[0].meet()
        came.append("fast")
    thread.join()
    assert came == ["slow", "fast", "slow", "fast"]


def test_an_error_of_all_is_said_once_and_one_of_one_by_it():
    run = Run(limit=30.0)
    assert run.peers[0].says("images are bad") and not run.peers[1].says("images are bad")
    assert run.peers[1].says("only here") and not run.peers[1].says("only here")
    run.service.works = False
    assert run.peers[1].says("nobody else can be asked")


_DEATHS = """
import os, signal, sys, time
import jax
from jax.experimental import multihost_utils
from sere_jax import distributed
from sere_jax.train import peers
port, rank, victim, how = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
distributed.start_distributed(coordinator='127.0.0.1:' + port, num_processes=2, process_id=rank)
peers.watch(5)
peers.resumes(lambda: 'it goes on from step 7')
multihost_utils.process_allgather(rank)
print('ready', flush=True)
if rank == victim:
    if how == 'SIGSTOP' and not os.fork():  # the test waits for all processes to end
        time.sleep(25)
        os.kill(os.getppid(), signal.SIGKILL)
        os._exit(0)
    os.kill(os.getpid(), getattr(signal, how))
began = time.monotonic()
leave = os._exit
def timed(code):
    print(f'left after {time.monotonic() - began:.1f} s', flush=True)
    leave(code)
peers._current._leave = os._exit = timed
try:
    multihost_utils.process_allgather(rank)
except Exception as error:
    peers.broken(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "how"),
    [
        # Process 0 serves JAX's coordination: when its socket closes, JAX aborts the others in C++ before Python can say anything.
        pytest.param(0, "SIGKILL", marks=pytest.mark.xfail(strict=True)),
        (0, "SIGSTOP"),
        (1, "SIGKILL"),
        (1, "SIGSTOP"),
    ],
)
def test_a_real_process_that_dies_or_stops_is_told_in_a_line(victim: int, how: str):
    outputs = outputs_of_two(_DEATHS, victim, how)
    survivor = outputs[1 - victim]
    print(survivor)
    assert f"process {victim} of 2 was lost" in survivor and "it goes on from step 7" in survivor, "\n".join(outputs)
    seconds = float(survivor.partition("left after ")[2].split()[0])
    assert seconds < 15
