"""The keys of the protocols that train a segmentation head: their rules, and mistakes among them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from sere_jax.config.cross import batch_of_processes
from sere_jax.config.keys import RULES as TRAINING
from sere_jax.config.rule import BOOL, SHARE, TEXT, Rule, choice, count, interval, number
from sere_jax.data.images.reading import ImageReading
from sere_jax.evals.segmentation.scores import ABSENT
from sere_jax.losses.segmentation import AVERAGES
from sere_jax.models.dense.segmenter import HEADS


class Settings(NamedTuple):
    """The keys of `configs/eval/upernet.py`, which explains them."""

    train: str
    test: str
    classes: int
    ignore: tuple[int, ...]
    zero_ignored: bool
    absent: Any
    head: Any
    blocks: tuple[int, ...]
    channels: int
    dilated_stages: int
    frozen: bool
    steps: int
    warmup_steps: int
    learning_rate: float
    schedule: str
    min_learning_rate: float
    batch_size: int
    accumulate_steps: int
    weight_decay: float
    decay_tokens: bool
    layer_decay: float
    drop_path: float
    dropout: float
    auxiliary_weight: float
    average: Any
    target_stride: int
    size: int
    crops: str
    crop_scale: tuple[float, float]
    limits: tuple[int, int]
    ratios: tuple[float, float]
    most_of_a_class: float
    flip_prob: float
    distortion: bool
    stride: int
    test_flip: bool
    test_scales: tuple[float, ...]
    test_resize: str
    most_pixels: int
    submission: str
    eval_every_steps: int
    log_every_steps: int
    workers: int
    reading: ImageReading
    max_bad_fraction: float
    dtype: str
    random_init: bool
    save_predictions: bool
    panels: int
    seed: int


RULES: Mapping[str, Rule] = {
    "train": TEXT,
    "test": TEXT,
    "classes": count(),
    "ignore": Rule(int, low=0, high=65535, length=0),
    "zero_ignored": BOOL,
    "absent": choice(*ABSENT),
    "head": choice(*HEADS),
    "blocks": Rule(int, low=0, length=0, ordered=True),
    "channels": count(1),
    "dilated_stages": count(),
    "frozen": BOOL,
    "steps": count(1),
    "warmup_steps": count(),
    "learning_rate": number(above=True),
    "schedule": choice("linear", "cosine"),
    "min_learning_rate": number(),
    "batch_size": count(1),
    "accumulate_steps": count(1),
    "weight_decay": number(),
    "decay_tokens": BOOL,
    "layer_decay": number(0.0, 1.0, above=True),
    "drop_path": number(0.0, 0.9),
    "dropout": number(0.0, 0.9),
    "auxiliary_weight": number(),
    "average": choice(*AVERAGES),
    "target_stride": count(1),
    "size": count(1),
    "crops": choice("scale", "resized"),
    "crop_scale": interval(1.0),
    "limits": Rule(int, low=1, length=2),
    "ratios": Rule(float, low=0.0, above=True, length=2, ordered=True),
    "most_of_a_class": number(0.0, 1.0, above=True),
    "flip_prob": SHARE,
    "distortion": BOOL,
    "stride": count(),
    "test_flip": BOOL,
    "test_scales": Rule(float, low=0.0, above=True, length=0),
    "test_resize": choice("opencv", "pillow"),
    "most_pixels": count(),
    "submission": TEXT,
    "eval_every_steps": count(1),
    "log_every_steps": count(1),
    "workers": count(),
    "backend": TRAINING["data.backend"],
    "max_pixels": TRAINING["data.max_pixels"],
    "max_bad_fraction": TRAINING["data.max_bad_fraction"],
    "dtype": choice("float32", "bfloat16"),
    "random_init": BOOL,
    "save_predictions": BOOL,
    "panels": count(),
    "seed": TRAINING["seed"],
}


def among(values: Mapping[str, Any], wrong: Collection[str], processes: int) -> list[str]:
    """Mistakes of right values among each other."""
    lines = [] if "batch_size" in wrong else batch_of_processes("batch_size", values["batch_size"], processes)
    if not {"steps", "warmup_steps"} & set(wrong) and values["warmup_steps"] > values["steps"]:
        lines.append(f"warmup_steps: found {values['warmup_steps']}, expected at most the {values['steps']} steps")
    if not {"head", "blocks"} & set(wrong) and values["head"] == "upernet" and len(values["blocks"]) != 4:
        lines.append(f"blocks: found {values['blocks']}, expected four blocks, from which UperNet's pyramid is made")
    if not {"stride", "size"} & set(wrong) and values["stride"] > values["size"]:
        lines.append(f"stride: found {values['stride']}, expected 0 or at most the window's {values['size']} pixels")
    return lines
