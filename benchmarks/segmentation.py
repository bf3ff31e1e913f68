"""Segmentation of a small set by random and trained networks: mean and spread over seeds.

    python -m benchmarks.segmentation --data=coco100 --output=OUT --checkpoint=RUN[,RUN...] --protocols=patch_knn,patch_logistic

DATA holds images/*.jpg, semantic/*.png (a class number a pixel, 0 = unlabelled) and semantic_classes.json (number -> name). Every fifth
image by name is for the test. Into OUT go the images, masks/, train.txt and test.txt, which eval.py reads as well:

    python eval.py --config=configs/eval/patch_knn.py:train=masks:OUT/masks:list:OUT/train.txt,test=masks:OUT/masks:list:OUT/test.txt ...

Unlabelled pixels are ignored (zero_ignored). Classes are numbered anew in the order of their numbers, so that those without pixels cost
nothing. Several checkpoints are taken as seeds of one recipe; of one the seed changes the images that settings are chosen on. The
spread is the standard deviation of a sample (n - 1). The trained heads are small and short: `--steps`, crops of 64 pixels.
Finished evaluations are kept, so other settings want another OUT.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.demo_seeds import spread
from configs.eval import patch_knn, patch_logistic, segmentation_linear, upernet
from sere_jax.commands import evaluate

CONFIGS: dict[str, Any] = {
    "patch_knn": patch_knn,
    "patch_logistic": patch_logistic,
    "segmentation_linear": segmentation_linear,
    "upernet": upernet,
}
SCORES = ("miou", "macc", "pixel_accuracy")


def split(data: Path, output: Path) -> dict[str, str]:
    """Write label maps with numbers without gaps, and the lists; the texts of both sources."""
    names = {int(number): name for number, name in json.loads((data / "semantic_classes.json").read_text()).items()}
    masks = sorted((data / "semantic").glob("*.png"))
    maps = {path.stem: np.asarray(Image.open(path)) for path in masks}
    present = [number for number in sorted(set(np.concatenate([np.unique(one) for one in maps.values()]).tolist())) if number]
    table = np.zeros(max(present) + 1, np.uint8)
    table[present] = range(1, len(present) + 1)
    (output / "masks").mkdir(parents=True, exist_ok=True)
    for stem, one in maps.items():
        Image.fromarray(table[one]).save(output / "masks" / f"{stem}.png")
    (output / "masks" / "classes.txt").write_text("".join(f"{name}\n" for name in ["unlabelled", *(names[number] for number in present)]))
    images = [path for path in sorted((data / "images").iterdir()) if path.stem in maps]
    sources = {}
    for part, which in (("train", False), ("test", True)):
        paths = [path for number, path in enumerate(images) if (number % 5 == 0) == which]
        for path in paths:
            shutil.copy(path, output)
        (output / f"{part}.txt").write_text("".join(f"{path.name}\n" for path in paths))
        sources[part] = f"masks:{output / 'masks'}:list:{output / f'{part}.txt'}"
    return sources


def settings_of(protocol: str, sources: dict[str, str], seed: int, flags: argparse.Namespace, depth: int) -> Any:
    config = CONFIGS[protocol].get_config()
    config.update({**sources, "zero_ignored": True, "seed": seed, "panels": 6 if seed == 0 else 0})
    if protocol.startswith("patch"):
        config.size = flags.size
        return config
    trained = {"steps": flags.steps, "eval_every_steps": flags.steps, "warmup_steps": flags.steps // 10, "batch_size": 8, "size": 64}
    config.update({**trained, "limits": (512, 96), "stride": 48, "random_init": True, "log_every_steps": 20})
    if protocol == "upernet":  # at a batch of 8 in so few steps, the published rate would not leave the start
        config.update({"blocks": tuple(max(0, depth * i // 4 - 1) for i in (1, 2, 3, 4)), "channels": 64, "learning_rate": 3e-4})
    else:
        config.blocks = (depth - 1,)
    return config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--protocols", default="patch_knn,patch_logistic")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", type=int, default=224, help="side of whole images for the probes of patches")
    parser.add_argument("--steps", type=int, default=300, help="of the trained heads")
    flags = parser.parse_args()
    sources = split(flags.data, flags.output.resolve())
    networks = [evaluate.load(path)._replace(name="trained") for path in flags.checkpoint.split(",")]
    for protocol in flags.protocols.split(","):
        scores_of: dict[str, list[dict[str, float]]] = {}
        for seed in range(flags.seeds):
            network, workdir = networks[seed % len(networks)], flags.output / f"seed{seed}"
            report = workdir / "eval" / f"{protocol}.json"
            if not report.is_file():
                evaluate.run(settings_of(protocol, sources, seed, flags, network.depth), [network], workdir)
            for result in json.loads(report.read_text())["results"]:
                scores_of.setdefault(result["name"], []).append(result["scores"])
        print(f"\n{protocol}, {flags.seeds} seeds: mean ± standard deviation, %")
        for name, scores in scores_of.items():
            cells = [[100 * one[score] for one in scores] for score in SCORES]
            print(f"{name:14}", *(f"{statistics.mean(c):6.1f} ±{spread(c):4.1f}" for c in cells))


if __name__ == "__main__":
    main()
