"""The real train.py, started again and again with workers and a micro config, and what a run may not leave behind."""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sere_jax.train.checkpoint import named_leaves, read_state
from tests.commands.test_pretrain import DRIVER, ROOT, environment
from tests.processes import free_port

_LATEST = 5.0  # seconds after which nothing of a killed run may be left
_MARK = "RELIABILITY_START"  # in the environment of a start and of all that descends from it

# With crops of this size a process's arrays take more than a MiB, so that workers pass them through shared memory.
SETTINGS = DRIVER | {"views.global_size": 112, "model.patch_size": 16, "eval.resize": 128, "data.workers": 2}
STEPS = 24


class Start(list[subprocess.Popen]):
    """The processes of one start of a run."""

    def __init__(self, processes: Sequence[subprocess.Popen], log: subprocess.Popen, mark: str) -> None:
        super().__init__(processes)
        self._log, self._mark = log, f"{_MARK}={mark}".encode()

    def running(self) -> bool:
        return any(process.poll() is None for process in self)

    def kill(self) -> None:
        for process in self:
            process.kill()
        self.wait()

    def wait(self, seconds: float = 900.0) -> list[int]:
        """The exit codes, once all have ended and what they said is written down."""
        codes = [process.wait(timeout=seconds) for process in self]
        with contextlib.suppress(subprocess.TimeoutExpired):  # an orphan may still hold the pipe
            self._log.wait(timeout=_LATEST)
        return codes

    def orphans(self) -> list[int]:
        """What still lives of the start, data workers too, a few seconds after its processes have ended."""
        latest = time.monotonic() + _LATEST
        while (pids := self._alive()) and time.monotonic() < latest:
            time.sleep(0.05)
        return pids

    def _alive(self) -> list[int]:
        return [int(pid) for pid in filter(str.isdigit, os.listdir("/proc")) if self._mark in read(f"/proc/{pid}/environ").split(b"\0")]


class Run:
    """Starts of one run with the same settings, on one or two processes."""

    def __init__(
        self, work: Path, steps: int = STEPS, processes: int = 1, devices: int = 1, settings: Mapping[str, Any] | None = None
    ) -> None:
        """`devices` are those of each process."""
        self.work, self.steps, self.processes = work, steps, processes
        micro = SETTINGS | {"data.batch_size": 16 * processes, "run.checkpoint_every_steps": 2}
        self.settings = {**(settings or micro), "schedule.total_steps": steps}
        cache = work / "compiled"
        self._environment = environment(
            devices, JAX_COMPILATION_CACHE_DIR=str(cache), JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0", PYTHONUNBUFFERED="1"
        )

    def start(self, name: str, program: Sequence[str] = ("train.py",), **more: str) -> Start:
        """Start or resume the run in `work/name`; what it says goes to `work/name.log`."""
        command = [sys.executable, *program, "--config=configs/quickstart.py", f"--workdir={self.work / name}"]
        command += [f"--config.{key}={value}" for key, value in self.settings.items()]
        port, mark = free_port(), secrets.token_hex(8)
        ranks = [[f"--coordinator=127.0.0.1:{port}", "--num_processes=2", f"--process_id={rank}"] for rank in (0, 1)]
        environ = self._environment | more | {_MARK: mark}
        # Through a pipe, because a limit on the sizes of files, which stands for a full disk, concerns no pipe.
        log = subprocess.Popen(["tee", "-a", str(self.work / f"{name}.log")], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        assert log.stdin is not None
        with log.stdin as stream:
            processes = [
                subprocess.Popen([*command, *flags], cwd=ROOT, env=environ, stdout=stream, stderr=stream)
                for flags in (ranks if self.processes == 2 else [[]])
            ]
        return Start(processes, log, mark)

    def finish(self, name: str, **more: Any) -> list[int]:
        """Run to the end; the exit codes."""
        return self.start(name, **more).wait()

    def whole(self) -> float:
        """Run in `work/whole` without an interruption, after everything is compiled; the seconds that it takes."""
        warm = self.start("warm")
        while warm.running() and not any(path.name.isdigit() for path in (self.work / "warm" / "checkpoints").glob("*")):
            time.sleep(0.2)
        for process in warm:
            process.terminate()
        self._must_end_well("warm", warm.wait())
        began = time.monotonic()
        self._must_end_well("whole", self.finish("whole"))
        return time.monotonic() - began

    def _must_end_well(self, name: str, codes: list[int]) -> None:
        assert set(codes) == {0}, (self.work / f"{name}.log").read_text()[-5000:]

    def said(self, name: str) -> str:
        """The last line of the last start."""
        return (self.work / f"{name}.log").read_text().rstrip().rpartition("\n")[2]

    def saving(self, name: str) -> bool:
        """Whether a checkpoint is being written."""
        directory = self.work / name / "checkpoints"
        return directory.is_dir() and any("tmp" in entry for entry in os.listdir(directory))

    def faults(self, name: str, logs: bool = True) -> list[str]:
        """What a finished run lacks or left behind, compared with the uninterrupted one in `work/whole`."""
        found, expected = [], _losses(self.work / "whole")
        if logs and _losses(self.work / name) != expected:
            found.append("metrics.jsonl does not have each step once, with the loss of the uninterrupted run")
        if left := unfinished(self.work / name):
            found.append(f"left {left[:5]}")
        (state, step), (expected_state, _) = read_state(self.work / name), read_state(self.work / "whole")
        if step != self.steps:
            found.append(f"ended at step {step}")
        if differ := _differences(named_leaves(state), named_leaves(expected_state)):
            found.append(f"another state than the uninterrupted run's: {differ[:3]} of {len(differ)} leaves")
        return found


def _differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """The leaves that do not have the same bits."""
    same = {name for name in found.keys() & expected.keys() if found[name].tobytes() == expected[name].tobytes()}
    return sorted((found.keys() | expected.keys()) - same)


def _losses(workdir: Path) -> list[tuple[int, float]]:
    lines: list[Mapping[str, Any]] = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


def unfinished(workdir: Path) -> list[str]:
    """Files and directories with the names that unfinished ones have."""
    return [str(path.relative_to(workdir)) for path in workdir.rglob("*") if "tmp" in path.name or ".partial." in path.name]


def finish_after(run: Run, name: str, failures: list[str], logs: bool = True) -> None:
    """Run the same command to its end, and add what is wrong with that."""
    check_end(run, name, run.finish(name), failures, logs)


def check_end(run: Run, name: str, codes: list[int], failures: list[str], logs: bool = True) -> None:
    """Add what is wrong with a run that has ended."""
    if set(codes) == {0} and "finished: step" not in run.said(name):
        failures.append(f"{name}: its last line is {run.said(name)!r}")
    failures += [f"{name}: {text}" for text in run.faults(name, logs)] if set(codes) == {0} else [f"{name}: then exit codes {codes}"]


def moment(rng: random.Random, seconds: float) -> float:
    """A random time from now to so many seconds later."""
    return time.monotonic() + rng.uniform(0.0, seconds)


def read(path: str) -> bytes:
    """A file of /proc; nothing where its process has ended."""
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def leaked(before: set[str]) -> list[str]:
    """Shared memory that was not there before and that no process holds, some seconds after the last process has ended."""
    latest, names = time.monotonic() + _LATEST, _unheld(before)
    while names and time.monotonic() < latest:
        time.sleep(0.5)
        names &= _unheld(before)  # what is new meanwhile belongs to another run
    return sorted(names)


def _unheld(before: set[str]) -> set[str]:
    new = set(os.listdir("/dev/shm")) - before
    maps = b"".join(read(f"/proc/{pid}/maps") for pid in filter(str.isdigit, os.listdir("/proc"))) if new else b""
    return {name for name in new if f"/dev/shm/{name}".encode() not in maps}
