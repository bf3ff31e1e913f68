"""Self-relation differences of DINO and DINO + SERE at several lengths of training: mean and spread over seeds.

    python -m benchmarks.relation_lengths --train=PHOTOS/train --heldout=PHOTOS/heldout --workdir=OUT [--steps=450,1200] [--seeds=0,1,2]

Networks of `configs/small.py`, judged on photographs that were not trained on, with the points and heads of the loss: 7 x 7 points,
3 heads, temperature 1. Every kind of token stands in the table, each with its sharpness: the L1 distance to the uniform relation.
Finished trainings and evaluations are kept; a training that was interrupted goes on from its checkpoint. The spread is the standard
deviation of a sample (n - 1). The table goes to OUT/table.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.demo_seeds import call, spread

RECIPES = ("dino", "dino_sere")
OF_THE_LOSS = ("--config.heads=3", "--config.points=7", "--config.spatial_temperatures=(1.0,)", "--config.channel_temperatures=(1.0,)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--heldout", type=Path, required=True)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--steps", default="450,1200")
    parser.add_argument("--seeds", default="0,1,2")
    options = parser.parse_args()
    lengths, seeds = ([int(number) for number in text.split(",")] for text in (options.steps, options.seeds))
    reports = {steps: [run(steps, seed, options) for seed in seeds] for steps in lengths}
    text = table(reports)
    (options.workdir / "table.md").write_text(text)
    print(text)


def run(steps: int, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train both recipes and judge them; network -> variant -> kind of relation -> its summary."""
    workdir = options.workdir.resolve() / f"{steps}-steps-seed{seed}"
    report = workdir / "eval" / "relations.json"
    if not report.is_file():
        for recipe in RECIPES:
            config = f"configs/small.py:recipe={recipe},source=folder:{options.train.resolve()},total_steps={steps},seed={seed}"
            call("train.py", f"--config={config}", f"--workdir={workdir / recipe}")
        networks = ",".join(str(workdir / recipe) for recipe in RECIPES)
        config = f"configs/eval/relations.py:source=folder:{options.heldout.resolve()}"
        call("eval.py", f"--config={config}", *OF_THE_LOSS, f"--checkpoint={networks}", f"--workdir={workdir}", f"--config.seed={seed}")
    return {row["name"]: row["variants"] for row in json.loads(report.read_text())["results"]}


def table(reports: dict[int, list[dict[str, Any]]]) -> str:
    """Markdown: a row for each kind of token, length and network."""
    columns = [(kind, number) for kind in ("spatial", "channel") for number in ("ratio", "uniform")]
    lines = ["| tokens | steps | network | spatial ratio | spatial sharpness | channel ratio | channel sharpness |", "|---" * 7 + "|"]
    for variant in next(iter(reports.values()))[0][RECIPES[0]]:
        for steps, seeds in reports.items():
            for network in seeds[0]:
                values = [[rows[network][variant][kind][number] for rows in seeds] for kind, number in columns]
                lines.append(f"| {variant} | {steps:,} | {network} | " + " | ".join(map(cell, values)) + " |")
    return "\n".join(lines) + "\n"


def cell(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f}" + (f" ± {spread(values):.3f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
