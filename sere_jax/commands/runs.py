"""List the pre-training runs below a directory: python -m sere_jax runs DIR

For each: recipe, step, newest scores, evaluations, state. Files that cannot be read are named below the table with the reason.
Exit code 1: there is no run; 2: DIR is no directory.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import rich.table

from sere_jax.buckets import address_mistake, is_address
from sere_jax.commands.report import newest_scores
from sere_jax.reporting import remote, screen
from sere_jax.reporting.workdir import Run, state
from sere_jax.writing import place


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m sere_jax runs", description=__doc__.splitlines()[0])
    parser.add_argument("directory", metavar="DIR", help="where runs are looked for, four directories deep; gs://BUCKET/NAME too")
    text = parser.parse_args(arguments).directory
    if mistake := address_mistake(text):
        print(f"{text}: {mistake}", file=sys.stderr)
        return 2
    directory = place(text)
    if not (is_address(text) or os.path.isdir(directory)):
        print(f"{directory}: found no directory, expected one with runs below it", file=sys.stderr)
        return 2
    table = rich.table.Table("run", "recipe", "step", "newest scores", "evaluations", "state")
    unreadable: list[str] = []
    try:
        for name, run in remote.below(directory):
            unreadable += run.unreadable
            table.add_row(name, *_row(run))
    except OSError as error:
        print(error, file=sys.stderr)
        return 2
    if not table.rows:
        print(f"{directory}: holds no runs (directories with config.json and metrics.jsonl)", file=sys.stderr)
        return 1
    screen.stdout().print(table)
    print("".join(f"cannot be read: {line}\n" for line in unreadable), end="", file=sys.stderr)
    return 0


def _row(run: Run) -> tuple[str, ...]:
    step = f"{run.step:,}" + (f" of {run.total_steps:,}" if run.total_steps else "")
    return str(run.config.get("recipe", "?")), step, newest_scores(run, most=1), ", ".join(run.evaluations), state(run)
