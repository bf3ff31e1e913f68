"""List the pre-training runs below a directory: python -m sere_jax runs DIR

For each: recipe, step, newest scores, evaluations, state. Exit code 1: there is none; 2: DIR is no directory.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import rich.table

from sere_jax.buckets import is_address
from sere_jax.commands.report import newest_scores
from sere_jax.reporting import screen
from sere_jax.reporting.workdir import read_run, runs_below, state, total_steps
from sere_jax.writing import place


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m sere_jax runs", description=__doc__.splitlines()[0])
    parser.add_argument("directory", metavar="DIR", help="where runs are looked for, four directories deep")
    directory = place(parser.parse_args(arguments).directory)
    if is_address(directory) or not directory.is_dir():
        print(f"{directory}: found no directory, expected one with runs below it", file=sys.stderr)
        return 2
    table = rich.table.Table("run", "recipe", "step", "newest scores", "evaluations", "state")
    for workdir in runs_below(directory):
        run = read_run(workdir)
        total = total_steps(run)
        table.add_row(
            str(workdir.relative_to(directory)) if workdir != directory else workdir.name,
            str(run.config.get("recipe", "?")),
            f"{run.step:,}" + (f" of {total:,}" if total else ""),
            newest_scores(run, most=1),
            ", ".join(run.evaluations),
            state(run),
        )
    if not table.rows:
        print(f"{directory}: holds no runs (directories with config.json and metrics.jsonl)", file=sys.stderr)
        return 1
    screen.stdout().print(table)
    return 0
