"""A campaign on the real train.py whose disk is full: from the start, or from a random moment on, for all that it writes."""

from __future__ import annotations

import random
import resource
import time
from pathlib import Path

from tests.reliability.outcome import Row, Trials
from tests.reliability.runs import Run, finish_after, moment, unfinished

_ENDS = 120.0  # seconds from the moment at which the disk is full


def failing_disks(trials: Trials, rng: random.Random, work: Path) -> Row:
    """The system lets no file of the run grow beyond some bytes. It ends with 1 and a sentence, or with 0 where only logs were lost.

    Small limits meet the config, the listing and the logs first, larger ones the files of the checkpoint. Half of the limits come
    at a random moment. Nothing unfinished is left, and the same command then ends in the bits of a run that had space.
    """
    run = Run(work)
    seconds = run.whole()
    for trial in trials:
        name, size = f"disk{trial}", round(10 ** rng.uniform(0.0, 4.8)) if rng.random() < 0.7 else 0
        start = run.start(name)
        [process] = start
        strikes = moment(rng, seconds) if trial % 2 else 0.0
        while process.poll() is None and time.monotonic() < strikes:
            time.sleep(0.005)
        if process.poll() is None:
            _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, hard))
        began = time.monotonic()
        [code] = start.wait(_ENDS * 5)
        last, took = run.said(name), time.monotonic() - began
        what = f"{name}: no file above {size:,} bytes: exit code {code} after {took:.0f} s: {last[:300]}"
        sound = _is_sound(code, last, run.work / name)
        if not sound or took > _ENDS:
            trials.failures.append(what)
        if left := [] if not (run.work / name).exists() else unfinished(run.work / name):
            trials.failures.append(f"{what}: left {left[:5]}")
        trials.ended("failed" if not sound else "told in a sentence" if code else "lost logs at most")
        finish_after(run, name, trials.failures, logs=False)
    return trials.row("a disk that is full under the real train.py, from the start or from a random moment on")


def _is_sound(code: int, last: str, workdir: Path) -> bool:
    """Whether a run ended as the documents say: 0 where it is finished, else 1 or 2 with a line that names the place and the reason.

    The system's limit holds for shared memory too, without which the data workers cannot go on.
    """
    if code == 0:
        return "finished: step" in last or "best:" in last
    return code in (1, 2) and ("shared memory (/dev/shm)" in last or (str(workdir) in last and "File too large" in last))
