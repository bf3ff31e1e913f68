"""What a report says of settings: the config file of each run, what differs from it, and what differs from the defaults."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sere_jax.config.keys import KEYS
from sere_jax.reporting import page
from sere_jax.reporting.workdir import Launched, Run


def settings(runs: Sequence[Run]) -> Iterator[str]:
    """For each run its config file and the keys that differ from it; then a table of those that differ from defaults or between runs."""
    trained = [run for run in runs if run.config]
    if not trained:
        yield page.note("no directory of this report holds a config.json")
        return
    for run in trained:
        yield from _from_file(run)
    yield from _from_defaults(trained)


def launch_note(name: str, launched: Launched | None) -> str:
    """The config file of an evaluation with the keys that differ from it, in one line; "" where that is not known."""
    if launched is None or not launched.config_file:
        return ""
    changed = [f"{change.key}: {change.file!r} -> {change.run!r} ({change.by})" for change in launched.changed]
    return f"{name}: config file {launched.config_file}; changed: {'; '.join(changed) or 'nothing'}"


def _from_file(run: Run) -> Iterator[str]:
    launched = run.launched
    if launched is None:
        yield page.note(f"{run.name}: which config file it was launched with was not saved")
    elif not launched.config_file:
        yield page.note(f"{run.name}: a program made its config, there is no config file")
    elif not launched.changed:
        yield page.note(f"{run.name}: config file {launched.config_file}; nothing was changed")
    else:
        rows = [[change.key, _text(change.file), _text(change.run), change.by] for change in launched.changed]
        yield page.table(f"{run.name}: changes of {launched.config_file}", ("key", "config file", "this run", "changed by"), rows, True)


def _from_defaults(runs: Sequence[Run]) -> Iterator[str]:
    def cell(run: Run, key: str) -> str:
        return str(run.config[key]) if key in run.config else "not saved"

    defaults = {path: key.default for path, key in KEYS.items()}
    rows = []
    for key in dict.fromkeys(name for run in runs for name in run.config):
        values = [cell(run, key) for run in runs]
        default = _text(defaults[key]) if key in defaults else ""
        if len(set(values)) > 1 or values[0] != default:
            rows.append([key, default, *values])
    yield page.table(
        "Settings that differ from their defaults or between runs", ["key", "default", *(run.name for run in runs)], rows, True
    )
    yield page.note("All other settings have their defaults; config.json in each workdir has every key.")


def _text(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)
