"""The keys of the protocol `detection`: their rules, and mistakes among them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from sere_jax.config.cross import batch_of_processes
from sere_jax.config.keys import RULES as TRAINING
from sere_jax.config.rule import ANY, BOOL, SHARE, TEXT, Rule, choice, count, number
from sere_jax.data.images.reading import ImageReading


class Settings(NamedTuple):
    """The keys of `configs/eval/detection.py`, which explains them."""

    train: str
    test: str
    masks: bool
    blocks: tuple[int, ...]
    channels: int
    hidden: int
    anchors: int
    proposals: int
    test_proposals: int
    regions: int
    detections: int
    objects: int
    epochs: int
    milestones: tuple[int, ...]
    warmup_steps: int
    warmup_start: float
    learning_rate: float
    batch_size: int
    accumulate_steps: int
    weight_decay: float
    layer_decay: float
    drop_path: float
    sizes: tuple[int, ...]
    longest: int
    before_crop: tuple[int, ...]
    crop_range: tuple[int, int]
    crop_prob: float
    flip_prob: float
    test_size: int
    test_longest: int
    test_batch_size: int
    eval_every_epochs: int
    log_every_steps: int
    workers: int
    reading: ImageReading
    max_bad_fraction: float
    dtype: str
    random_init: bool
    panels: int
    seed: int


RULES: Mapping[str, Rule] = {
    "train": TEXT,
    "test": TEXT,
    "masks": BOOL,
    "blocks": Rule(int, low=0, length=4, ordered=True),
    "channels": count(1),
    "hidden": count(1),
    "anchors": count(2),
    "proposals": count(1),
    "test_proposals": count(1),
    "regions": count(4),
    "detections": count(1),
    "objects": count(1),
    "epochs": count(1),
    "milestones": Rule(int, low=1, length=ANY, ordered=True),
    "warmup_steps": count(),
    "warmup_start": SHARE,
    "learning_rate": number(above=True),
    "batch_size": count(1),
    "accumulate_steps": count(1),
    "weight_decay": number(),
    "layer_decay": number(0.0, 1.0, above=True),
    "drop_path": number(0.0, 0.9),
    "sizes": Rule(int, low=1, length=0, ordered=True),
    "longest": count(1),
    "before_crop": Rule(int, low=1, length=0, ordered=True),
    "crop_range": Rule(int, low=1, length=2, ordered=True),
    "crop_prob": SHARE,
    "flip_prob": SHARE,
    "test_size": count(1),
    "test_longest": count(1),
    "test_batch_size": count(1),
    "eval_every_epochs": count(1),
    "log_every_steps": count(1),
    "workers": count(),
    "backend": TRAINING["data.backend"],
    "max_pixels": TRAINING["data.max_pixels"],
    "max_bad_fraction": TRAINING["data.max_bad_fraction"],
    "dtype": choice("float32", "bfloat16"),
    "random_init": BOOL,
    "panels": count(),
    "seed": TRAINING["seed"],
}


def among(values: Mapping[str, Any], wrong: Collection[str], processes: int) -> list[str]:
    """Mistakes of right values among each other."""
    lines: list[str] = []
    for key in ("batch_size", "test_batch_size"):
        lines += [] if key in wrong else batch_of_processes(key, values[key], processes)
    if not {"milestones", "epochs"} & set(wrong) and max(values["milestones"], default=0) >= values["epochs"]:
        lines.append(f"milestones: found {values['milestones']}, expected epochs before the last of {values['epochs']}")
    return lines + _longer_sides(values, wrong)


def _longer_sides(values: Mapping[str, Any], wrong: Collection[str]) -> list[str]:
    """Limits of the longer side that are below a shorter side."""
    shorter = {"sizes": values["sizes"], "before_crop": values["before_crop"] if values["crop_prob"] else ()}
    pairs = [("longest", key, sides) for key, sides in shorter.items()] + [("test_longest", "test_size", (values["test_size"],))]
    return [
        f"{limit}: found {values[limit]}, expected at least {max(sides)}, the largest shorter side of {key}"
        for limit, key, sides in pairs
        if not {limit, key, "crop_prob"} & set(wrong) and values[limit] < max(sides, default=0)
    ]
