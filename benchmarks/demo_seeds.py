"""`make demo` for several seeds: mean and spread of its k-NN table.

Launch: python -m benchmarks.demo_seeds [--seeds=0,1,2] [--workdir=runs/demo_seeds]. Finished seeds are kept; a seed that was
interrupted goes on from its checkpoint. The spread is the standard deviation of a sample (n - 1).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--workdir", type=Path, default=Path("runs/demo_seeds"))
    chosen = parser.parse_args()
    seeds = [int(seed) for seed in chosen.seeds.split(",")]
    show({seed: run(seed, chosen.workdir.resolve() / f"seed{seed}") for seed in seeds})


def run(seed: int, workdir: Path) -> dict[str, float]:
    """Train and judge one seed; row of the table -> top-1 accuracy at its best k."""
    results = workdir / "eval" / "knn.json"
    if not results.is_file():
        call("train.py", "--config=configs/quickstart.py", f"--config.seed={seed}", f"--workdir={workdir}")
        judge = ("--config=configs/eval/knn.py:bundled", "--config.baselines=True", f"--config.seed={seed}")
        call("eval.py", *judge, f"--checkpoint={workdir}", f"--workdir={workdir}")
    rows = json.loads(results.read_text())["results"]
    trained = f"seed{seed}"
    return {"trained" if row["name"] == trained else row["name"]: row["best_top1"] for row in rows}


def call(*arguments: str) -> None:
    """Print and run `python ARGUMENTS` in the repository. Raises CalledProcessError where it fails."""
    print("python", *arguments, flush=True)
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True)


def spread(values: Sequence[float]) -> float:
    """The standard deviation of a sample (n - 1), 0 for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def show(found: dict[int, dict[str, float]]) -> None:
    """One line a row of the table: mean, spread, each seed; below them the trained error over the best baseline's."""
    names = list(next(iter(found.values())))
    width = max(map(len, names))
    print(f"\n{'top-1, %':{width}}  {'mean':>6} {'spread':>6}  seeds {', '.join(map(str, found))}")
    for name in names:
        values = [100 * rows[name] for rows in found.values()]
        print(f"{name:{width}}  {statistics.mean(values):6.1f} {spread(values):6.1f}  {', '.join(f'{value:.1f}' for value in values)}")
    best = [max(value for name, value in rows.items() if name != "trained") for rows in found.values()]
    ratios = [(1 - rows["trained"]) / max(1 - top, 1e-9) for rows, top in zip(found.values(), best, strict=True)]
    print(f"trained error / best baseline's error: {', '.join(f'{ratio:.2f}' for ratio in ratios)} (mean {statistics.mean(ratios):.2f})")


if __name__ == "__main__":
    main()
