"""Does the detector learn? A small ViT with Cascade Mask R-CNN, from random weights, on a few COCO photographs of 256 pixels.

    python -m benchmarks.detection_learning --data=coco100 --output=OUT              tested on the images that it learns by heart
    python -m benchmarks.detection_learning --data=coco100 --output=OUT --split --epochs=20      every fifth image is for the test

DATA holds `instances.json` and `images/`. The images are the first `--images` by name, or with `--split` all. The protocol is `detection`
with the settings below: fewer boxes, narrower heads, one scale, mirror images with `--split` alone. A training that was interrupted goes
on. The last lines are the AP of boxes and masks, and the loss at the beginning and the end.

A detector that cannot learn eight images by heart (AP50 of boxes and masks below 50) has a fault.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from configs.eval import detection
from sere_jax.commands import evaluate, prepare
from sere_jax.evals.network import Network
from sere_jax.models.vit import ViT
from sere_jax.weights.beside import IMAGENET_MEAN, IMAGENET_STD

SIDE = 256
SETTINGS: dict[str, Any] = {
    "blocks": (0, 1, 2, 3),
    "channels": 32,
    "hidden": 128,
    "anchors": 64,
    "proposals": 96,
    "test_proposals": 96,
    "regions": 32,
    "objects": 20,
    "layer_decay": 1.0,  # nothing is trained before, so that no layer has to be spared
    "drop_path": 0.0,
    "warmup_steps": 100,
    "sizes": (SIDE,),
    "longest": SIDE,
    "crop_prob": 0.0,
    "test_size": SIDE,
    "test_longest": SIDE,
    "log_every_steps": 20,
}


def small_vit(seed: int) -> Network:
    """Four blocks of 96 channels with random weights."""
    module = ViT(width=96, depth=4, heads=3, patch_size=16, image_size=SIDE)
    params = jax.jit(module.init)(jax.random.key(seed), jnp.zeros((1, SIDE, SIDE, 3)))["params"]
    about = {"checkpoint": "random initialisation", "seed": seed}
    sizes = {"size": SIDE, "resize": SIDE, "patch": 16, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    return Network("small ViT", module.apply, params, **sizes, about=about, module=module, depth=module.depth)


def write_set(data: Path, directory: Path, parts: dict[str, list[dict[str, Any]]]) -> None:
    """Write images and JSON of each part in COCO's layout."""
    table = json.loads((data / "instances.json").read_text())
    (directory / "annotations").mkdir(parents=True, exist_ok=True)
    for part, images in parts.items():
        numbers = {image["id"] for image in images}
        annotations = [one for one in table["annotations"] if one["image_id"] in numbers]
        text = json.dumps({**table, "images": images, "annotations": annotations})
        (directory / "annotations" / f"instances_{part}2017.json").write_text(text)
        (directory / f"{part}2017").mkdir(exist_ok=True)
        for image in images:
            shutil.copy(data / "images" / image["file_name"], directory / f"{part}2017")


def sources(data: Path, output: Path, count: int) -> dict[str, str]:
    """Prepare the sets. With `count` the first so many images, which are also the test; with 0 every fifth image is for the test."""
    images = sorted(json.loads((data / "instances.json").read_text())["images"], key=lambda image: image["file_name"])
    if count:
        parts = {"train": images[:count]}
    else:
        parts = {"train": [image for i, image in enumerate(images) if i % 5], "val": images[::5]}
    write_set(data, output / "coco", parts)
    prepared = output / "prepared"
    if prepare.main([f"--source=coco:{output / 'coco'}", f"--output={prepared}"]):
        raise SystemExit(f"{prepared}: the images could not be prepared")
    return {"train": f"tfds:{prepared}:train", "test": f"tfds:{prepared}:{'train' if count else 'validation'}"}


def show(output: Path, window: int = 5) -> None:
    """Print the scores, and means of the loss over the first and last logged steps."""
    row = json.loads((output / "eval" / "detection.json").read_text())["results"][0]
    lines = [json.loads(line) for line in Path(row["training"], "metrics.jsonl").read_text().splitlines()]
    logged = [line["loss"] for line in lines if "loss" in line]
    first, last = (statistics.mean(losses) for losses in (logged[:window], logged[-window:]))
    print(f"loss: {first:.2f} at the beginning, {last:.2f} at the end, means of {window} logged steps")
    for kind in ("box", "mask"):
        print(f"{kind}: " + ", ".join(f"{name} {100 * row['scores'][f'{kind}_{name}']:.1f}" for name in ("ap", "ap50", "ap75")))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--images", type=int, default=8, help="that are learned and tested")
    parser.add_argument("--split", action="store_true", help="all images, every fifth for the test")
    parser.add_argument("--epochs", type=int, default=120)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--learning_rate", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args(arguments)
    output = flags.output.resolve()
    config = detection.get_config()
    schedule = {"epochs": flags.epochs, "milestones": (flags.epochs * 7 // 10, flags.epochs * 9 // 10)}
    rate = {"batch_size": flags.batch_size, "learning_rate": flags.learning_rate, "eval_every_epochs": max(1, flags.epochs // 8)}
    rate["flip_prob"] = 0.5 if flags.split else 0.0
    config.update({**sources(flags.data, output, 0 if flags.split else flags.images), **SETTINGS, **schedule, **rate, "seed": flags.seed})
    evaluate.run(config, [small_vit(flags.seed)], output)
    show(output)
    print(f"{time.process_time() / 60:.1f} minutes of processor time")


if __name__ == "__main__":
    main()
