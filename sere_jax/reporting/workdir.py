"""What a run left in its workdir, read without JAX: config, metrics, evaluations, figures, and whether it goes on."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

_RANDOM = "/random"  # ends the name of a metric at random initialisation
_PRUNED = ("checkpoints", "tensorboard", "eval", "figures", "listings")
_DEPTH = 4  # directories below the first in which runs are looked for


class Series(NamedTuple):
    """One metric of a run."""

    steps: list[int]
    values: list[float]
    reference: float | None = None  # its value when nothing is learned, where a metric NAME/random tells it


class Run(NamedTuple):
    """The contents of one workdir; a directory of evaluations alone has no config and no metrics."""

    name: str
    directory: Path
    config: Mapping[str, Any]  # keys by their full path; {} where there is none
    metrics: Mapping[str, Series]
    evaluations: Mapping[str, Mapping[str, Any]]  # protocol -> its report
    figures: tuple[Path, ...]
    unreadable: tuple[str, ...]  # files that could not be read, with the reason

    @property
    def step(self) -> int:
        """The newest logged step, 0 without any."""
        return max((series.steps[-1] for series in self.metrics.values()), default=0)


def read_run(directory: Path, name: str = "") -> Run:
    """Read one workdir. Files that cannot be read are listed in `unreadable`. Raises FileNotFoundError where there is nothing to report."""
    unreadable: list[str] = []
    config = _json(directory / "config.json", unreadable) if (directory / "config.json").exists() else {}
    evaluations = {path.stem: _json(path, unreadable) for path in sorted((directory / "eval").glob("*.json"))}
    run = Run(
        name or directory.name,
        directory,
        dict(_flat(config)),
        read_metrics(directory / "metrics.jsonl"),
        {protocol: report for protocol, report in evaluations.items() if isinstance(report.get("results"), list)},
        tuple(sorted((directory / "figures").glob("*.png"))),
        tuple(unreadable),
    )
    if not (run.config or run.metrics or run.evaluations or run.figures):
        raise FileNotFoundError(f"{directory}: found neither config.json, metrics.jsonl, eval/*.json nor figures/*.png; expected a workdir")
    return run


def read_metrics(path: Path) -> dict[str, Series]:
    """The metrics of a run by name. A last line that is not complete, and values that were not finite, are left out."""
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for record in _records(path):
        for name, value in record.items():
            if name not in ("step", "time") and isinstance(value, int | float):
                steps, values = curves.setdefault(name, ([], []))
                steps.append(record["step"])
                values.append(float(value))
    random = {name.removesuffix(_RANDOM): values[-1] for name, (_, values) in curves.items() if name.endswith(_RANDOM)}
    return {name: Series(*curve, random.get(name)) for name, curve in curves.items() if not name.endswith(_RANDOM)}


def runs_below(directory: Path) -> Iterator[Path]:
    """The workdirs of pre-training runs in a directory, itself included, in the order of their names; links are not followed."""
    for place, folders, files in os.walk(directory):
        deep = len(Path(place).relative_to(directory).parts)
        folders[:] = sorted(name for name in folders if name not in _PRUNED and not name.startswith(".")) if deep < _DEPTH else []
        if {"config.json", "metrics.jsonl"} <= set(files):
            yield Path(place)


def total_steps(run: Run) -> int:
    """The length of a run in steps by its config and the list of its images; 0 where they do not say it."""
    if steps := run.config.get("schedule.total_steps"):
        return int(steps)
    lists = sorted((run.directory / "listings").glob("*.jsonl.gz"), key=lambda path: path.stat().st_mtime)
    if not lists or "data.batch_size" not in run.config:
        return 0
    try:
        with gzip.open(lists[-1]) as file:
            images = sum(1 for _ in file)
    except (OSError, EOFError):
        return 0
    return int(run.config.get("schedule.epochs", 0)) * (images // int(run.config["data.batch_size"]))


def state(run: Run, now: float | None = None) -> str:
    """What a run does: 'finished', 'running (process 7)', or when it was last heard of.

    A process of another host cannot be looked for; then only the age of the last line is known.
    """
    total = total_steps(run)
    if total and run.step >= total:
        return "finished"
    owner = _owner(run.directory)
    if owner.get("host") == socket.gethostname() and _alive(owner.get("pid")):
        return f"running (process {owner['pid']})"
    path = run.directory / "metrics.jsonl"
    if not path.exists():
        return "no steps yet"
    age = duration((time.time() if now is None else now) - path.stat().st_mtime)
    host = owner.get("host")
    return f"last line {age} ago" + (f", on {host}" if host and host != socket.gethostname() else ", stopped")


def duration(seconds: float) -> str:
    """A rounded time in words.

    >>> duration(40.0), duration(4000.0), duration(200_000.0)
    ('40 s', '67 min', '2 days')
    """
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.0f} days"


def _records(path: Path) -> Iterator[dict[str, Any]]:
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    for line in lines:
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                yield record


def _json(path: Path, unreadable: list[str]) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(errors="replace"))
    except (OSError, ValueError) as error:
        unreadable.append(f"{path}: {error}")
        return {}
    return content if isinstance(content, dict) else {}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _owner(directory: Path) -> dict[str, Any]:
    """The process that wrote to the directory last, as its lock says."""
    for name in (".lock", ".lock.exists"):
        with contextlib.suppress(OSError, ValueError):
            record = json.loads((directory / name).read_text())
            if isinstance(record, dict):
                return record
    return {}


def _alive(pid: Any) -> bool:
    try:
        os.kill(int(pid), 0)
    except PermissionError:
        return True
    except (OSError, TypeError, ValueError, OverflowError):
        return False
    return True
