"""Campaigns on the real train.py: killed and signalled at random moments, and a soak."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

from tests.reliability.outcome import Row, memory, row
from tests.reliability.runs import SETTINGS, Run, Start, finish_after, leaked, moment, read

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_MORE = (100.0, 5, 5)  # megabytes, descriptors and threads by which a start of the soak may grow


def _words(processes: int) -> str:
    return "two processes" if processes == 2 else "one process"


def killed(count: int, rng: random.Random, work: Path, *, processes: int = 1, per_run: int = 10) -> Row:
    """SIGKILL at random moments from the first import to the last save; each run then ends in the bits of one that was never killed.

    Every other kill waits for a save. Of many, at least three in ten must hit one.
    """
    run, outcomes, failures = Run(work, processes=processes), [], []
    shared, seconds, number = set(os.listdir("/dev/shm")), run.whole(), 0
    while len(outcomes) < count:
        name, number, kills = f"killed{number}", number + 1, 0
        while kills < per_run and len(outcomes) < count:
            start = run.start(name)
            saving = _strike(run, name, start, rng, seconds, in_save=len(outcomes) % 2 == 0)
            ended = not start.running()
            start.kill()
            if orphans := start.orphans():
                failures.append(f"{name}: processes {orphans} are left")
            if ended:
                break
            kills += 1
            outcomes.append("killed in a save" if saving else "killed elsewhere")
        finish_after(run, name, failures)
    if count >= 10 and outcomes.count("killed in a save") < 0.3 * count:
        failures.append(f"only {outcomes.count('killed in a save')} kills hit a save")
    if left := leaked(shared):
        failures.append(f"shared memory is left: {left[:5]}")
    return row(f"SIGKILL of the real train.py, {_words(processes)}; {number} runs then ended in the same bits", outcomes, failures)


def _strike(run: Run, name: str, start: Start, rng: random.Random, seconds: float, in_save: bool) -> bool:
    """Wait for a random moment, or for the first save after one; whether a save is under way."""
    begins, ends = moment(rng, seconds), time.monotonic() + 2 * seconds
    while start.running() and time.monotonic() < (ends if in_save else begins):
        time.sleep(0.002)
        if in_save and time.monotonic() > begins and run.saving(name):
            time.sleep(rng.uniform(0.0, 0.03))
            if run.saving(name):
                break
    return run.saving(name)


def signalled(count: int, rng: random.Random, work: Path, *, processes: int = 1) -> Row:
    """SIGTERM, SIGINT and SIGHUP at random moments: exit code 0, and the same command then ends in the same bits.

    The first moment is that at which the program listens, before its first import.
    """
    run, outcomes, failures = Run(work, processes=processes), [], []
    shared, seconds = set(os.listdir("/dev/shm")), run.whole()
    for trial in range(count):
        name, number = f"signalled{trial}", rng.choice(_SIGNALS)
        start = run.start(name)
        target = rng.choice(start)
        while start.running() and not _listens(target.pid, number):
            time.sleep(0.01)
        strikes = moment(rng, seconds)
        while start.running() and time.monotonic() < strikes:
            time.sleep(0.005)
        late = target.poll() is not None
        if not late:
            target.send_signal(number)
        codes = start.wait(300.0)
        outcomes.append("failed" if set(codes) != {0} else "had ended" if late else f"ended with 0 after {number.name}")
        failures += [] if set(codes) == {0} else [f"{name}: {number.name}, exit codes {codes}: {run.said(name)[:200]}"]
        if orphans := start.orphans():
            failures.append(f"{name}: processes {orphans} are left")
        finish_after(run, name, failures)
    if left := leaked(shared):
        failures.append(f"shared memory is left: {left[:5]}")
    return row(f"signals to the real train.py, {_words(processes)}", outcomes, failures)


def _listens(pid: int, number: signal.Signals) -> bool:
    """Whether a process catches a signal."""
    for line in read(f"/proc/{pid}/status").splitlines():
        if line.startswith(b"SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def soak(count: int, rng: random.Random, work: Path, *, steps_per_kill: int = 200) -> Row:
    """Many steps with kills: memory, descriptors and threads stay level, and the end is that of the uninterrupted run."""
    run = Run(work, steps_per_kill * count, settings=SETTINGS | {"run.checkpoint_every_steps": 20})
    seconds, growth, failures = run.whole(), [], []
    shared = set(os.listdir("/dev/shm"))
    kills = 0
    while True:
        start = run.start("soak")
        uses = _uses(start, run.work / "soak" / "metrics.jsonl", moment(rng, 2 * seconds / count) if kills < count else float("inf"))
        kills += start.running()
        ended = not start.running()
        start.kill()
        if len(uses) > 1:
            growth.append(tuple(b - a for a, b in zip(uses[0], uses[-1], strict=True)))
        if ended:
            break
    failures += [f"soak: {text}" for text in run.faults("soak")] + [f"shared memory is left: {name}" for name in leaked(shared)]
    most = [max(values) for values in zip(*growth, strict=True)] if growth else [0.0, 0, 0]
    words = f"{most[0]:.0f} MB, {most[1]:.0f} descriptors and {most[2]:.0f} threads more"
    if any(more > limit for more, limit in zip(most, _MORE, strict=True)):
        failures.append(f"within a start: {words}")
    return Row(f"a soak of {run.steps:,} steps with {kills} kills", kills, f"at most {words} within a start, and the same bits", failures)


def _uses(start: Start, metrics: Path, latest: float) -> list[tuple[float, ...]]:
    """(megabytes, descriptors, threads) from the second after the start's first step until it ends or until `latest`."""
    [process], found = start, []
    changes, changed = 0, metrics.stat().st_mtime_ns if metrics.exists() else 0
    stepped = float("inf")
    while process.poll() is None and time.monotonic() < latest:
        time.sleep(0.2)
        if metrics.exists() and (now := metrics.stat().st_mtime_ns) > changed:
            changes, changed = changes + 1, now
            if changes == 2:  # the first is the start's, which drops lines
                stepped = time.monotonic()
                latest = max(latest, stepped + 3.0)  # so that each start gets somewhere
        if time.monotonic() > stepped + 1.0:
            try:
                threads = int(read(f"/proc/{process.pid}/status").split(b"Threads:")[1].split()[0])
                found.append((memory("VmRSS", process.pid), len(os.listdir(f"/proc/{process.pid}/fd")), threads))
            except (OSError, KeyError, IndexError):  # it has just ended
                break
    return found
