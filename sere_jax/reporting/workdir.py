"""What a run left in its workdir, read without JAX: config, metrics, evaluations, figures, and whether it goes on."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

_RANDOM = "/random"  # ends the name of a metric at random initialisation
PRUNED = ("checkpoints", "tensorboard", "eval", "figures", "listings")
DEPTH = 4  # directories below the first in which runs are looked for


class Series(NamedTuple):
    """One metric of a run."""

    steps: list[int]
    values: list[float]
    reference: float | None = None  # its value when nothing is learned, where a metric NAME/random tells it


class Change(NamedTuple):
    """A key whose value is not the config file's."""

    key: str
    file: Any  # its value in the file
    run: Any
    by: str  # "command line", or "what follows from it"


class Launched(NamedTuple):
    """How a config was launched, as launch.json of a run and eval/launches/PROTOCOL.json say it."""

    config_file: str  # with its argument; "" where a program made the config
    changed: tuple[Change, ...]


class Run(NamedTuple):
    """The contents of one workdir; a directory of evaluations alone has no config and no metrics."""

    name: str
    directory: Path
    config: Mapping[str, Any]  # keys by their full path; {} where there is none
    metrics: Mapping[str, Series]
    evaluations: Mapping[str, Mapping[str, Any]]  # protocol -> its report
    figures: tuple[Path, ...]
    total_steps: int  # the length of the run, 0 where its files do not say it
    unreadable: tuple[str, ...]  # files and settings that could not be read, with the reason
    launched: Launched | None = None  # None: the run is of a version that did not save it
    launches: Mapping[str, Launched] = {}  # of the evaluations, by protocol

    @property
    def step(self) -> int:
        """The newest logged step, 0 without any."""
        return max((series.steps[-1] for series in self.metrics.values()), default=0)


def read_run(directory: Path, name: str = "") -> Run:
    """Read one workdir. Files that cannot be read are listed in `unreadable`. Raises FileNotFoundError where there is nothing to report."""
    unreadable: list[str] = []
    config = dict(_flat(_json(directory / "config.json", unreadable)))
    launched = _launched(directory / "launch.json", unreadable)
    evaluations = dict(_evaluations(directory / "eval", unreadable))
    launches = {name: _launched(directory / "eval" / "launches" / f"{name}.json", unreadable) for name in evaluations}
    run = Run(
        name or directory.name,
        directory,
        config,
        read_metrics(directory, unreadable),
        evaluations,
        tuple(sorted((directory / "figures").glob("*.png"))),
        _total_steps(config, directory, unreadable),
        tuple(unreadable),
        launched,
        {name: found for name, found in launches.items() if found is not None},
    )
    if not (run.config or run.metrics or run.evaluations or run.figures or (unreadable and os.path.isdir(directory))):
        raise FileNotFoundError(f"{directory}: found neither config.json, metrics.jsonl, eval/*.json nor figures/*.png; expected a workdir")
    return run


def read_metrics(directory: Path, unreadable: list[str]) -> dict[str, Series]:
    """The metrics of a run by name. A last line that is not complete, and values that were not finite, are left out.

    A workdir that was copied out of a bucket may hold parts beside metrics.jsonl; of two lines with a step the later part's counts. Where a
    file cannot be read, `unreadable` gets a line with the reason.
    """
    curves: dict[str, tuple[list[int], list[float]]] = {}
    by_step = {record["step"]: record for path in _metric_files(directory) for record in _records(_text(path, unreadable))}
    for _, record in sorted(by_step.items()):
        for name, value in record.items():
            if name not in ("step", "time") and _is_finite(value):
                steps, values = curves.setdefault(name, ([], []))
                steps.append(record["step"])
                values.append(float(value))
    random = {name.removesuffix(_RANDOM): values[-1] for name, (_, values) in curves.items() if name.endswith(_RANDOM)}
    return {name: Series(*curve, random.get(name)) for name, curve in curves.items() if not name.endswith(_RANDOM)}


def _metric_files(directory: Path) -> list[Path]:
    return [directory / "metrics.jsonl", *sorted(directory.glob("metrics-*.jsonl"))]


def runs_below(directory: Path) -> Iterator[Path]:
    """The workdirs of pre-training runs in a directory, itself included, in the order of their names; links are not followed."""
    for place, folders, files in os.walk(directory):
        deep = len(Path(place).relative_to(directory).parts)
        folders[:] = sorted(name for name in folders if name not in PRUNED and not name.startswith(".")) if deep < DEPTH else []
        if {"config.json", "metrics.jsonl"} <= set(files):
            yield Path(place)


def state(run: Run, now: float | None = None) -> str:
    """What a run does: 'finished', 'running (process 7)', or when it was last heard of.

    A process of another host cannot be looked for; then only the age of the last line is known.
    """
    if run.total_steps and run.step >= run.total_steps:
        return "finished"
    owner = _owner(run.directory)
    if owner.get("host") == socket.gethostname() and _alive(owner.get("pid")):
        return f"running (process {owner['pid']})"
    try:
        written = max(path.stat().st_mtime for path in _metric_files(run.directory))
    except OSError:
        return "no steps yet"
    age = duration((time.time() if now is None else now) - written)
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


def _launched(path: Path, unreadable: list[str]) -> Launched | None:
    """What a launch's file says; None where there is none or it cannot be used."""
    content = _json(path, unreadable)
    if not content:
        return None
    try:
        changes = [Change(key, change["file"], change["run"], str(change["by"])) for key, change in content["changed"].items()]
        return Launched(str(content["config_file"]), tuple(changes))
    except (KeyError, TypeError, AttributeError):
        unreadable.append(f"{path}: expected config_file, and for each key of changed its values file and run, and by")
        return None


def _total_steps(config: Mapping[str, Any], directory: Path, unreadable: list[str]) -> int:
    """The length of a run by its config and the number of its images, which the run saved; 0 where they do not say it."""
    wanted = {"schedule.total_steps": 0, "schedule.epochs": 0, "data.batch_size": 1}
    counts = {
        key: _count(config[key], least, f"{directory / 'config.json'}: {key}", unreadable) for key, least in wanted.items() if key in config
    }
    if steps := counts.get("schedule.total_steps"):
        return steps
    if not (counts.get("schedule.epochs") and counts.get("data.batch_size")):
        return 0
    path = directory / "data.json"
    data = _json(path, unreadable)
    images = _count(data["images"], 0, f"{path}: images", unreadable) if "images" in data else 0
    return counts["schedule.epochs"] * (images // counts["data.batch_size"])


def _count(value: Any, least: int, name: str, unreadable: list[str]) -> int:
    """A number that counts something; 0, and a line in `unreadable`, for another value."""
    if type(value) is int and least <= value <= sys.maxsize:
        return value
    unreadable.append(f"{name}: found {value!r}, expected a whole number of at least {least}")
    return 0


def _evaluations(directory: Path, unreadable: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The reports of the protocols by name; JSON files without results are no reports."""
    for path in sorted(directory.glob("*.json")):
        report = _parsed(path, unreadable)
        if not isinstance(report, dict):
            continue
        results, notes = report.get("results"), report.get("notes", [])
        if isinstance(results, list) and all(isinstance(result, dict) for result in results) and isinstance(notes, list):
            yield path.stem, report
        elif "results" in report:
            unreadable.append(f"{path}: expected lists of results, which are objects, and of notes")


def _records(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            record = json.loads(line)
            if isinstance(record, dict) and isinstance(record.get("step"), int) and _is_finite(record["step"]):
                yield record


def _is_finite(value: Any) -> bool:
    """Whether a value is a number that a float can hold; JSON's whole numbers have any length."""
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def _text(path: Path, unreadable: list[str]) -> str:
    """The text of a file, "" where there is none or it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError) as error:
        if path.is_symlink():
            unreadable.append(f"{path}: a link to nothing ({error.strerror})")
    except OSError as error:
        unreadable.append(f"{path}: {error.strerror or error}")
    return ""


def _json(path: Path, unreadable: list[str]) -> dict[str, Any]:
    """The object in a JSON file, {} where there is no such file or it holds something else."""
    before = len(unreadable)
    content = _parsed(path, unreadable)
    if isinstance(content, dict) and content:
        return content
    if len(unreadable) == before and path.exists():
        unreadable.append(f"{path}: found {str(content)[:40]}, expected an object with keys")
    return {}


def _parsed(path: Path, unreadable: list[str]) -> Any:
    """The content of a JSON file, None where there is no such file or it cannot be read."""
    before = len(unreadable)
    text = _text(path, unreadable)
    if not text and (len(unreadable) > before or not path.exists()):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        unreadable.append(f"{path}: {error}")
        return None


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
