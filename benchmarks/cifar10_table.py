"""The classification protocols on CIFAR-10, by the documented commands: one table for networks of `configs/cifar10.py`.

    python train.py --config=configs/cifar10.py:recipe=dino,source=folder:CIFAR10/train --workdir=runs/dino
    python train.py --config=configs/cifar10.py:recipe=dino_sere,source=folder:CIFAR10/train --workdir=runs/dino_sere
    python -m benchmarks.cifar10_table --train=CIFAR10/train --test=CIFAR10/test --checkpoint=runs/dino,runs/dino_sere --workdir=runs/table

CIFAR10/train and CIFAR10/test hold a folder a class. Raw pixels and random initialisation stand beside the networks. Cheap protocols
(k-NN, least squares, logistic regression, linear on cached features) run with every seed, which draws the images, the held-out ones
and the random initialisation; fine-tuning runs with the first. `--train_images` and `--test_images` take the same number of images of
every class, drawn by the seed; 1 % and 10 % are of CIFAR-10's 50,000 images, whatever `--train_images` is.

A row is one `eval.py`. It is kept, so that the same command goes on after a stop. The table goes to WORKDIR/table.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
CHEAP = {
    "knn": ("k-NN", "knn.py:gallery={train},query={test}", ("--config.baselines=True", "--config.neighbours=(10,20,100,200)")),
    "least_squares": ("least squares", "least_squares.py:train={train},test={test}", ("--config.features={features}",)),
    "logistic": ("logistic", "logistic.py:train={train},test={test}", ("--config.features={features}", "--config.max_steps=300")),
    "linear": (
        "linear, cached",
        "linear.py:train={train},test={test},cached=True",
        ("--config.features={features}", "--config.blocks=(1,)", "--config.epochs=30", "--config.batch_size=256"),
    ),
}
SHORT = ["--config.base_lr=1e-3", "--config.min_lr=1e-6", "--config.batch_size=64", "--config.layer_decay=0.75", "--config.select=split"]


class Protocol(NamedTuple):
    """A column of the table: one `eval.py` for each seed."""

    title: str
    name: str  # of its report
    config: str
    options: tuple[str, ...]
    images: int  # training images; 0: as many as the cheap protocols take
    seeds: bool  # with every seed


def protocols(options: argparse.Namespace) -> Iterator[Protocol]:
    """The columns, cheap ones first."""
    for name, (title, config, more) in CHEAP.items():
        yield Protocol(title, name, config, more, 0, True)
    for title, images, epochs in (("1 % of labels", 500, options.epochs * 8), ("10 % of labels", 5000, options.epochs)):
        semi = ("--config.head_layer=1", f"--config.epochs={epochs}", f"--config.warmup_epochs={max(1, epochs // 10)}", *SHORT)
        yield Protocol(title, "semi", "semi.py:train={train},test={test}", (*semi, f"--config.eval_every_epochs={epochs}"), images, False)
    whole = (f"--config.epochs={options.epochs}", "--config.warmup_epochs=1", *SHORT)
    yield Protocol(f"fine-tuned, {options.epochs} epochs", "finetune", "finetune.py:train={train},test={test}", whole, 0, False)


def listed(directory: Path, images: int, seed: int, file: Path) -> str:
    """Write a list of `images` files of the folders of a directory, the same number of every class; returns it as a source."""
    if not file.is_file():
        rng = np.random.default_rng(seed)
        lines = []
        classes = sorted(path for path in directory.iterdir() if path.is_dir())
        for folder in classes:
            names = sorted(path.name for path in folder.iterdir())
            share = len(names) if not images else images // len(classes)
            lines += [f"{folder.resolve() / names[i]}\t{folder.name}" for i in sorted(rng.permutation(len(names))[:share])]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(lines) + "\n")
    return f"list:{file}"


def run(protocol: Protocol, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """Evaluate, unless it was done; row of the table -> top-1 accuracy in percent."""
    work = options.workdir.resolve()
    slug = "".join(letter if letter.isalnum() else "_" for letter in protocol.title)
    report = work / f"{slug}-seed{seed}" / "eval" / f"{protocol.name}.json"
    if not report.is_file():
        train_images = protocol.images or options.train_images
        train = listed(options.train, train_images, seed, work / "lists" / f"train-{train_images}-seed{seed}.txt")
        test = listed(options.test, options.test_images, 0, work / "lists" / f"test-{options.test_images}.txt")
        texts = (protocol.config, *protocol.options)
        config, *more = (text.format(train=train, test=test, features=work / "features") for text in texts)
        command = ["eval.py", f"--config=configs/eval/{config}", *more, f"--config.seed={seed}"]
        command += [f"--checkpoint={','.join(map(str, options.checkpoint))}", f"--workdir={report.parent.parent}"]
        print("python", *command, flush=True)
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
    return dict(scores(json.loads(report.read_text())))


def scores(report: dict) -> Iterator[tuple[str, float]]:
    """(row, top-1 in percent) of a report; k-NN's is at the best k, and of fine-tuning the last epoch's counts."""
    for row in report["results"]:
        if report["protocol"] == "knn":
            yield row["name"], 100 * row["best_top1"]
        else:
            yield row["name"], 100 * row["scores"].get("last_top1", row["scores"]["top1"])


def table(columns: dict[str, list[dict[str, float]]]) -> str:
    """Markdown; mean and standard deviation where there are several seeds."""
    names = list(dict.fromkeys(name for seeds in columns.values() for rows in seeds for name in rows))
    lines = ["| top-1, % | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name in names:
        cells = []
        for seeds in columns.values():
            values = [rows[name] for rows in seeds if name in rows]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}" if values else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--checkpoint", required=True, type=lambda text: [Path(part).resolve() for part in text.split(",")])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train_images", type=int, default=0, help="of all classes together; default: all")
    parser.add_argument("--test_images", type=int, default=0, help="likewise")
    parser.add_argument("--epochs", type=int, default=5, help="of fine-tuning, and of 10 %% of the labels; 1 %% take 8 times as many")
    parser.add_argument("--only", default="", help="some of the columns' report names, separated by commas: knn,logistic")
    options = parser.parse_args()
    columns: dict[str, list[dict[str, float]]] = {}
    for protocol in protocols(options):
        if options.only and protocol.name not in options.only.split(","):
            continue
        for seed in range(options.seeds if protocol.seeds else 1):
            columns.setdefault(protocol.title, []).append(run(protocol, seed, options))
            (options.workdir / "table.md").write_text(table(columns))
    print(table(columns))


if __name__ == "__main__":
    main()
