"""Campaigns on the real train.py, with workers: killed and signalled at random moments, and a soak."""

from __future__ import annotations

import glob
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.commands.test_pretrain import DRIVER, ROOT, assert_same_end, environment, records
from tests.processes import free_port
from tests.reliability.outcome import Row, row

_LATEST = 5.0  # seconds after which nothing of a killed run may be left


class Run:
    """Starts of one run with the same settings, on one or two processes."""

    def __init__(self, work: Path, steps: int, processes: int) -> None:
        self.work, self.steps, self.processes = work, steps, processes
        cache = work / "compiled"
        self._environment = environment(JAX_COMPILATION_CACHE_DIR=str(cache), JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0")

    def start(self, name: str) -> list[subprocess.Popen]:
        """Start or resume the run in `work/name`."""
        port, settings = free_port(), DRIVER | {"schedule.total_steps": self.steps, "run.checkpoint_every_steps": 2, "data.workers": 2}
        command = [sys.executable, "train.py", "--config=configs/quickstart.py", f"--workdir={self.work / name}"]
        command += [f"--config.{key}={value}" for key, value in settings.items()]
        ranks = [[f"--coordinator=127.0.0.1:{port}", "--num_processes=2", f"--process_id={rank}"] for rank in (0, 1)]
        with open(self.work / f"{name}.log", "a") as log:
            return [
                subprocess.Popen([*command, *more], cwd=ROOT, env=self._environment, stdout=log, stderr=log)
                for more in (ranks if self.processes == 2 else [[]])
            ]

    def finish(self, name: str) -> list[int]:
        """Run to the end; the exit codes."""
        return [process.wait(timeout=900) for process in self.start(name)]

    def faults(self, name: str) -> list[str]:
        """What a finished run lacks or left behind, compared with the uninterrupted one in `work/whole`."""
        found = []
        if sorted(records(self.work / name)) != list(range(1, self.steps + 1)):
            found.append("metrics.jsonl does not have each step once")
        if left := glob.glob(str(self.work / name / "checkpoints" / "*tmp*")):
            found.append(f"left {left}")
        try:
            assert_same_end(self.work / name, self.work / "whole", self.steps)
        except AssertionError:
            found.append("another state than the uninterrupted run's")
        return found


def _children(pids: list[int]) -> set[int]:
    """The processes that descend from these, by /proc."""
    parents = {}
    for path in glob.glob("/proc/[0-9]*/stat"):
        try:
            fields = Path(path).read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(path.split("/")[2])] = int(fields[1])
    found: set[int] = set()
    new = set(pids)
    while new := {pid for pid, parent in parents.items() if parent in new and pid not in found}:
        found |= new
    return found


def _wait(pids: set[int]) -> list[int]:
    """Those that still live after a few seconds."""
    latest = time.monotonic() + _LATEST
    while time.monotonic() < latest and any(os.path.exists(f"/proc/{pid}") for pid in pids):
        time.sleep(0.05)
    return [pid for pid in pids if os.path.exists(f"/proc/{pid}")]


def killed(count: int, rng: random.Random, work: Path, *, processes: int = 1, steps: int = 60, per_run: int = 10) -> Row:
    """SIGKILL at random moments from the first import to the last save; each run then ends in the bits of one that was never killed."""
    run, outcomes, failures = Run(work, steps, processes), [], []
    shared = set(os.listdir("/dev/shm"))
    assert set(run.finish("warm")) == {0}
    began = time.monotonic()
    assert set(run.finish("whole")) == {0}
    duration, number = time.monotonic() - began, 0
    while len(outcomes) < count:
        name, number, kills = f"killed{number}", number + 1, 0
        while kills < per_run and len(outcomes) < count:
            started = run.start(name)
            time.sleep(rng.uniform(0, duration))
            workers = _children([process.pid for process in started])
            saving = bool(glob.glob(str(work / name / "checkpoints" / "*tmp*")))
            ended = all(process.poll() is not None for process in started)
            for process in started:
                process.kill()
            for process in started:
                process.wait()
            if orphans := _wait(workers):
                failures.append(f"{name}: processes {orphans} are left")
            if ended:
                break
            kills += 1
            outcomes.append("killed in a save" if saving else "killed elsewhere")
        codes = run.finish(name)
        failures += [f"{name}: exit codes {codes}"] if set(codes) != {0} else [f"{name}: {text}" for text in run.faults(name)]
    if left := set(os.listdir("/dev/shm")) - shared:
        failures.append(f"shared memory is left: {sorted(left)[:5]}")
    what = (
        f"SIGKILL of the real train.py, {'two processes' if processes == 2 else 'one process'}; {number} runs then ended in the same bits"
    )
    return row(what, outcomes, failures)


def signalled(count: int, rng: random.Random, work: Path, *, processes: int = 1, steps: int = 60) -> Row:
    """SIGTERM, SIGINT and SIGHUP at random moments: exit code 0, and the same command then ends in the same bits."""
    run, outcomes, failures = Run(work, steps, processes), [], []
    assert set(run.finish("warm")) == {0}
    began = time.monotonic()
    assert set(run.finish("whole")) == {0}
    duration = time.monotonic() - began
    for trial in range(count):
        name, number = f"signalled{trial}", rng.choice([signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
        started = run.start(name)
        time.sleep(rng.uniform(0.3, duration))
        target = rng.choice(started)
        if target.poll() is None:
            target.send_signal(number)
        codes = [process.wait(timeout=300) for process in started]
        outcomes.append(f"ended with 0 after {number.name}" if set(codes) == {0} else "failed")
        failures += [] if set(codes) == {0} else [f"{name}: {number.name}, exit codes {codes}"]
        codes = run.finish(name)
        failures += [f"{name}: then exit codes {codes}"] if set(codes) != {0} else [f"{name}: {text}" for text in run.faults(name)]
    return row(f"signals to the real train.py, {'two processes' if processes == 2 else 'one process'}", outcomes, failures)


def soak(steps: int, kills: int, rng: random.Random, work: Path) -> Row:
    """Many steps with kills: memory, descriptors and threads stay level, and the end is that of the uninterrupted run."""
    run, failures = Run(work, steps, 1), []
    began = time.monotonic()
    assert set(run.finish("whole")) == {0}
    duration, growth = time.monotonic() - began, []
    for kill in range(kills + 1):
        [process] = run.start("soak")
        time.sleep(min(10.0, duration / 4))
        before = _use(process.pid)
        deadline = time.monotonic() + rng.uniform(0, duration / max(1, kills)) if kill < kills else float("inf")
        after = before
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
            after = _use(process.pid) or after
        if process.poll() is None:
            process.kill()
        process.wait()
        if before and after:
            growth.append(tuple(b - a for a, b in zip(before, after, strict=True)))
    failures += run.faults("soak")
    memory, descriptors, threads = (max(values) for values in zip(*growth, strict=True)) if growth else (0, 0, 0)
    if memory > 100 or descriptors > 5 or threads > 5:
        failures.append(f"within a start: {memory} MB, {descriptors} descriptors and {threads} threads more")
    ended = f"at most {memory} MB, {descriptors} descriptors, {threads} threads more within a start"
    return Row(f"a soak of {steps:,} steps with {kills} kills", kills, ended, failures)


def _use(pid: int) -> tuple[int, int, int] | None:
    """(MB of memory, open descriptors, threads) of a process; None where it has ended."""
    try:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return int(status["VmRSS"].split()[0]) // 1024, len(os.listdir(f"/proc/{pid}/fd")), int(status["Threads"])
    except (OSError, KeyError):
        return None
