"""A campaign on the real train.py: begun on some devices and processes, and gone on with on others."""

from __future__ import annotations

import collections
import itertools
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from tests.commands.test_pretrain import MICRO
from tests.reliability.outcome import Row, Trials
from tests.reliability.runs import Run

# (devices, processes); two processes have at least two devices.
PLACES = [(devices, processes) for processes in (1, 2) for devices in (1, 2, 4, 8) if devices >= processes]
PAIRS = list(itertools.product(PLACES, PLACES))
_HALF, _STEPS = 3, 6
_RTOL = 1e-5
_PROGRAM = ("-m", "tests.reliability.recorded")


def elastic(trials: Trials, rng: random.Random, work: Path) -> Row:
    """Every step of every pair sees the images and crops of one device, and has its loss to 1e-5.

    The losses see the keys too: photometry and drop path draw from them, and other draws move a loss by far more than that.
    """
    pairs = rng.sample(PAIRS, min(trials.count, len(PAIRS)))
    runs = {place: _run(work, *place) for place in {PLACES[0], *(place for pair in pairs for place in pair)}}
    for place, run in runs.items():
        name = _name(place)
        codes = run.finish(name, program=_PROGRAM, RECORDED=str(work / name))
        trials.failures += [f"{name}: exit codes {codes}"] if set(codes) != {0} else []
    if trials.failures:
        return trials.row("begun on some devices and processes, gone on with on others")
    expected, losses = _seen(work, _name(PLACES[0])), _losses(work / _name(PLACES[0]))
    for trial in trials:
        first, then = pairs[trial]
        name = f"{_name(first)}-then-{_name(then)}"
        shutil.copytree(work / _name(first) / "checkpoints" / str(_HALF), work / name / "checkpoints" / str(_HALF))
        codes = runs[then].finish(name, program=_PROGRAM, RECORDED=str(work / name))
        found = _faults(work, _name(first), range(1, _STEPS + 1), expected, losses)
        found += [f"exit codes {codes}"] if set(codes) != {0} else _faults(work, name, range(_HALF + 1, _STEPS + 1), expected, losses)
        trials.failures += [f"{name}: {text}" for text in found]
        trials.ended("failed" if found else "with the same images and losses")
    return trials.row("begun on some of {1, 2, 4, 8} devices in {1, 2} processes, gone on with on others")


def _name(place: tuple[int, int]) -> str:
    return f"{place[0]}-devices-{place[1]}-processes"


def _run(work: Path, devices: int, processes: int) -> Run:
    settings: dict[str, Any] = MICRO | {"run.checkpoint_every_steps": _HALF, "run.keep_checkpoints": 5, "data.workers": 2}
    return Run(work, _STEPS, processes, devices // processes, settings)


def _seen(work: Path, name: str) -> dict[int, list[list[int]]]:
    """By step the (example, checksum of the crops) of each row of the global batch."""
    found: dict[int, list[list[int]]] = collections.defaultdict(list)
    for path in sorted(work.glob(f"{name}-[01]")):
        for line in path.read_text().splitlines():
            step, _, index, crops = json.loads(line)
            found[step] += [list(pair) for pair in zip(index, crops, strict=True)]
    return found


def _losses(workdir: Path) -> dict[int, float]:
    return {record["step"]: record["loss"] for record in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())}


def _faults(work: Path, name: str, steps: range, expected: dict[int, Any], losses: dict[int, float]) -> list[str]:
    seen, found = _seen(work, name), _losses(work / name)
    faults = [f"step {step} saw other images or crops" for step in steps if seen[step] != expected[step]]
    if sorted(found) != list(steps):
        return [*faults, f"metrics.jsonl has the steps {sorted(found)}"]
    worst = max(abs(found[step] / losses[step] - 1.0) for step in steps)
    return faults + ([f"a loss differs by {worst:.1e}"] if not worst <= _RTOL or np.isnan(worst) else [])
