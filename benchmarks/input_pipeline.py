"""CPU time of the host's work on one image, ours beside other pipelines: python -m benchmarks.input_pipeline --source=folder:DIR

Contenders take turns on the same images, one thread each; the table shows the median of each round's milliseconds, and the median of each
round's ratio to ours. Ours is all that a worker does (read, decode, crop, collate into the batch; photometry is the device's);
peers also do photometry and leave collation out. Run it where nothing else runs, best on one core: `taskset -c 1 python ...`.
`pip install -r requirements-bench.txt` adds albumentations and torch; what cannot be imported is left out and named.
`--rounds=0` times nothing and tells only how far the crops of our `fast` backend are from those of `pil`.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable

import cv2
import numpy as np
import rich.console
import rich.table
import torch

from benchmarks import input_peers as peers
from sere_jax.data.batches.maker import BatchMaker
from sere_jax.data.batches.order import Stream, example_index, position_rng
from sere_jax.data.batches.pipeline import ViewsRow
from sere_jax.data.crops.views import ViewRecipe, make_views
from sere_jax.data.images.decode import decode
from sere_jax.data.images.reading import Backend, ImageReading
from sere_jax.data.sources.open import Source, open_source

Work = Callable[[int], None]  # the number of a round -> all its images


def ours(source: Source, recipe: ViewRecipe, images: int, backend: Backend) -> Work:
    """One batch of `images` rows, as a worker makes it; a round is a step."""
    return BatchMaker(source, ViewsRow(recipe, ImageReading(backend)), seed=0, batch_size=images, first_row=0, rows=images)


def peer(source: Source, make: peers.Recipe, images: int) -> Work:
    """The same images one by one, in the order in which ours meets them."""

    def work(round_: int) -> None:
        for position in range(round_ * images, (round_ + 1) * images):
            make(source[example_index(0, position, len(source), images)].data)

    return work


def contenders(source: Source, prepared: Source | None, locals_: int, images: int) -> dict[str, Work]:
    recipe = ViewRecipe(local_count=locals_)
    found: dict[str, Work] = {"ours": ours(source, recipe, images, "fast")}
    if prepared is not None:
        found["ours, prepared data"] = ours(prepared, recipe, images, "fast")
    found["ours, backend=pil"] = ours(source, recipe, images, "pil")
    made = {
        "DINO (Pillow, re-stated)": peers.dino(locals_),
        "SERE's authors (re-stated)": peers.authors(locals_),
        "torchvision": peers.torchvision(locals_),
        "albumentations": peers.albumentations(locals_),
    }
    for name, make in made.items():
        if make is None:
            print(f"{name}: cannot be imported, left out", file=sys.stderr)
        else:
            found[name] = peer(source, make, images)
    return found


def measure(found: dict[str, Work], rounds: int, images: int) -> dict[str, list[float]]:
    """Milliseconds of CPU an image, one value a round; the contenders take turns, in another order each round."""
    times: dict[str, list[float]] = {name: [] for name in found}
    for work in found.values():  # imports, tables and caches
        work(0)
    for round_ in range(rounds):
        for name in random.Random(round_).sample(list(found), len(found)):
            began = time.process_time()
            found[name](round_)
            times[name].append((time.process_time() - began) / images * 1000)
    return times


def quality(source: Source, images: int, backend: Backend = "fast") -> dict[str, float]:
    """How far crops of `backend` are from those of Pillow, on the same boxes: levels of 255, and PSNR as the mean over crops."""
    recipe = ViewRecipe(local_count=4)
    errors: dict[str, list[float]] = {"global": [], "local": []}
    decibels: dict[str, list[float]] = {"global": [], "local": []}
    for index in range(min(images, len(source))):
        image = decode(source[index].data)
        one, other = (make_views(image, recipe, position_rng(0, index, Stream.VIEWS), which) for which in (backend, "pil"))
        for kind, a, b in (("global", one.global_views, other.global_views), ("local", one.local_views, other.local_views)):
            difference = a.astype(np.float64) - b
            errors[kind] += np.abs(difference).mean((1, 2, 3)).tolist()
            decibels[kind] += (20 * np.log10(255 / np.sqrt(np.maximum((difference**2).mean((1, 2, 3)), 1e-2)))).tolist()
    means = {f"{kind} crops: mean error, levels": statistics.fmean(errors[kind]) for kind in errors}
    return means | {f"{kind} crops: PSNR, dB": statistics.fmean(decibels[kind]) for kind in decibels}


def show(title: str, times: dict[str, list[float]], console: rich.console.Console) -> dict[str, dict[str, float]]:
    table = rich.table.Table("pipeline", "ms CPU an image", "images/s a core", "times ours", "rounds", title=title, title_justify="left")
    rows = {}
    for name, values in times.items():
        median = statistics.median(values)
        ratios = [value / base for value, base in zip(values, times["ours"], strict=True)]
        rows[name] = {"milliseconds": median, "ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        table.add_row(name, f"{median:.2f}", f"{1000 / median:.0f}", f"{rows[name]['ratio']:.2f}", spread)
    console.print(table)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", required=True)
    parser.add_argument("--prepared", default="", help="the same images, prepared: tfds:DIR:SPLIT")
    parser.add_argument("--locals", default="4,10", help="numbers of local crops beside two global ones")
    parser.add_argument("--images", type=int, default=100, help="images a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", default="", metavar="FILE")
    flags = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    source, console = open_source(flags.source), rich.console.Console()
    prepared = open_source(flags.prepared) if flags.prepared else None
    images = min(flags.images, len(source))
    results: dict[str, object] = {}
    for count in map(int, flags.locals.split(",")) if flags.rounds else ():
        times = measure(contenders(source, prepared, count, images), flags.rounds, images)
        results[f"2+{count}"] = show(f"2 x 224 + {count} x 96, {flags.source}", times, console)
    results["quality"] = quality(source, images if flags.rounds else len(source))
    for name, value in results["quality"].items():  # type: ignore[attr-defined]
        console.print(f"fast against pil, {name}: {value:.2f}")
    if flags.json:
        with open(flags.json, "w") as file:
            json.dump(results, file, indent=2)


if __name__ == "__main__":
    main()
