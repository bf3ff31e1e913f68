"""Campaigns on the real train.py: killed and signalled at random moments, and a soak."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

from etils import epath

from sere_jax.train.saved_steps import steps_if_readable
from tests.reliability.outcome import Row, Trials, memory
from tests.reliability.runs import SETTINGS, Run, Start, check_end, finish_after, leaked, moment, read

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_IN_SAVE = "killed in a save"
_MORE = (100.0, 5, 5)  # megabytes, descriptors and threads by which a start of the soak may grow


def _words(processes: int) -> str:
    return "two processes" if processes == 2 else "one process"


def killed(trials: Trials, rng: random.Random, work: Path, *, processes: int = 1, per_run: int = 10) -> Row:
    """SIGKILL at random moments from the first import to the last save; each run then ends in the bits of one that was never killed.

    Every other kill waits for a save. Of many, at least three in ten must hit one.
    """
    run = Run(work, processes=processes)
    shared, seconds, number, save = set(os.listdir("/dev/shm")), run.whole(), 0, True
    while trials.more():
        name, number, kills, ended = f"killed{number}", number + 1, 0, False
        while kills < per_run and trials.more():
            start = run.start(name)
            saving = _strike(run, name, start, rng, seconds, in_save=save)
            if not (ended := not start.running()):
                start.kill()
            codes = start.wait()
            if orphans := start.orphans():
                trials.failures.append(f"{name}: processes {orphans} are left")
            if ended:
                break
            kills, save = kills + 1, not save
            trials.ended(_IN_SAVE if saving else "killed elsewhere")
        check_end(run, name, codes if ended else run.finish(name), trials.failures)
    if trials.count >= 10 and trials.share(_IN_SAVE) < 0.3:
        trials.failures.append(f"only {trials.share(_IN_SAVE):.0%} of the kills hit a save")
    if left := leaked(shared):
        trials.failures.append(f"shared memory is left: {left[:5]}")
    return trials.row(f"SIGKILL of the real train.py, {_words(processes)}; {number} runs then ended in the same bits")


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


def signalled(trials: Trials, rng: random.Random, work: Path, *, processes: int = 1) -> Row:
    """SIGTERM, SIGINT and SIGHUP at random moments: exit code 0, and the same command then ends in the same bits.

    The first moment is that at which the program listens, before its first import.
    """
    signal.signal(signal.SIGHUP, lambda *_: None)  # under nohup it is ignored, and would be by all that is started from here
    run = Run(work, processes=processes)
    shared, seconds, starts = set(os.listdir("/dev/shm")), run.whole(), 0
    while trials.more():
        name, number, starts = f"signalled{starts}", rng.choice(_SIGNALS), starts + 1
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
        if set(codes) == {0} and not late:  # a moment after the end is no trial
            trials.ended(f"ended with 0 after {number.name}")
        elif set(codes) != {0}:
            trials.failed(f"{name}: {number.name}, exit codes {codes}: {run.said(name)[:200]}")
        if orphans := start.orphans():
            trials.failures.append(f"{name}: processes {orphans} are left")
        finish_after(run, name, trials.failures)
    if left := leaked(shared):
        trials.failures.append(f"shared memory is left: {left[:5]}")
    return trials.row(f"signals to the real train.py, {_words(processes)}")


def _listens(pid: int, number: signal.Signals) -> bool:
    """Whether a process catches a signal."""
    for line in read(f"/proc/{pid}/status").splitlines():
        if line.startswith(b"SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def soak(trials: Trials, rng: random.Random, work: Path, *, steps_per_kill: int = 200) -> Row:
    """Many steps with kills: memory, descriptors and threads stay level, and the end is that of the uninterrupted run."""
    run = Run(work, steps_per_kill * trials.count, settings=SETTINGS | {"run.checkpoint_every_steps": 20})
    seconds, growth, ended = run.whole(), [], False
    shared = set(os.listdir("/dev/shm"))
    while not ended:
        start = run.start("soak")
        uses = _uses(start, run.work / "soak" / "checkpoints", moment(rng, 2 * seconds / trials.count) if trials.more() else float("inf"))
        if not (ended := not start.running()):
            trials.ended("killed")
        start.kill()
        if len(uses) > 1:  # a save takes some for as long as it lasts, so the least of the later looks is compared
            early, late = uses[: len(uses) // 2], uses[len(uses) // 2 :]
            growth.append(tuple(min(b) - min(a) for a, b in zip(zip(*early, strict=True), zip(*late, strict=True), strict=True)))
    trials.failures += [f"soak: {text}" for text in run.faults("soak")] + [f"shared memory is left: {name}" for name in leaked(shared)]
    most = [max(values) for values in zip(*growth, strict=True)] if growth else [0.0, 0, 0]
    words = f"{most[0]:.0f} MB, {most[1]:.0f} descriptors and {most[2]:.0f} threads more"
    if any(more > limit for more, limit in zip(most, _MORE, strict=True)):
        trials.failures.append(f"within a start: {words}")
    return trials.row(f"a soak of {run.steps:,} steps that ends in the same bits, with at most {words} within a start")


def _uses(start: Start, checkpoints: Path, latest: float) -> list[tuple[float, ...]]:
    """(megabytes, descriptors, threads) from the second after the start's first save until it ends or until `latest`."""
    [process], looks = start, []
    before, saved = steps_if_readable(epath.Path(checkpoints))[-1:], float("inf")
    while process.poll() is None and time.monotonic() < latest:
        time.sleep(0.2)
        if saved == float("inf") and steps_if_readable(epath.Path(checkpoints))[-1:] != before:
            saved = time.monotonic()
            latest = max(latest, saved + 3.0)  # so that each start gets somewhere
        if time.monotonic() > saved + 1.0:
            try:
                threads = int(read(f"/proc/{process.pid}/status").split(b"Threads:")[1].split()[0])
                looks.append((memory("VmRSS", process.pid), len(os.listdir(f"/proc/{process.pid}/fd")), threads))
            except (OSError, KeyError, IndexError):  # it has just ended
                break
    return looks
