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

from sere_jax.buckets import is_address
from sere_jax.commands.report import newest_scores
from sere_jax.reporting import screen
from sere_jax.reporting.workdir import read_run, runs_below, state
from sere_jax.writing import place


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m sere_jax runs", description=__doc__.splitlines()[0])
    parser.add_argument("directory", metavar="DIR", help="where runs are looked for, four directories deep")
    directory = place(parser.parse_args(arguments).directory)
    if is_address(directory) or not os.path.isdir(directory):
        print(f"{directory}: found no directory, expected one with runs below it", file=sys.stderr)
        return 2
    table = rich.table.Table("run", "recipe", "step", "newest scores", "evaluations", "state")
    unreadable: list[str] = []
    for workdir in runs_below(directory):
        try:
            run = read_run(workdir)
        except FileNotFoundError:  # deleted since it was found
            continue
        unreadable += run.unreadable
        table.add_row(
            str(workdir.relative_to(directory)) if workdir != directory else workdir.name,
            str(run.config.get("recipe", "?")),
            f"{run.step:,}" + (f" of {run.total_steps:,}" if run.total_steps else ""),
            newest_scores(run, most=1),
            ", ".join(run.evaluations),
            state(run),
        )
    if not table.rows:
        print(f"{directory}: holds no runs (directories with config.json and metrics.jsonl)", file=sys.stderr)
        return 1
    screen.stdout().print(table)
    print("".join(f"cannot be read: {line}\n" for line in unreadable), end="", file=sys.stderr)
    return 0
