"""The keys of the protocols that fine-tune: their rules, and mistakes among them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from sere_jax.config.cross import batch_of_processes, resize_before_crop
from sere_jax.config.keys import RULES as TRAINING
from sere_jax.config.rule import SHARE, Rule, number
from sere_jax.data.images.reading import ImageReading
from sere_jax.evals.frozen.comparison import SIDE
from sere_jax.evals.frozen.probe_data import SELECT, validation_mistakes
from sere_jax.models.classifier import POOLINGS


class Settings(NamedTuple):
    """The keys of `configs/eval/finetune.py`, which explains them."""

    train: str
    validation: str
    test: str
    select: str
    held_out: float
    pool: str
    head_layer: int
    head_std: float
    epochs: int
    warmup_epochs: int
    base_lr: float
    min_lr: float
    batch_size: int
    accumulate_steps: int
    repeats: int
    weight_decay: float
    layer_decay: float
    drop_path: float
    mixup: float
    cutmix: float
    switch_prob: float
    mix_prob: float
    smoothing: float
    erase_prob: float
    rand_magnitude: float
    rand_deviation: float
    crop_scale: tuple[float, float]
    flip_prob: float
    size: int
    resize: int
    eval_every_epochs: int
    eval_batch_size: int
    log_every_steps: int
    workers: int
    reading: ImageReading
    max_bad_fraction: float
    dtype: str
    random_init: bool
    save_predictions: bool
    seed: int


RULES: Mapping[str, Rule] = {
    "train": Rule(str),
    "validation": Rule(str),
    "test": Rule(str),
    "select": Rule(str, choices=SELECT),
    "held_out": Rule(float, low=0.0, high=0.9, above=True),
    "pool": Rule(str, choices=POOLINGS),
    "head_layer": Rule(int, low=0, high=1),
    "head_std": number(above=True),
    "epochs": Rule(int, low=1),
    "warmup_epochs": Rule(int, low=0),
    "base_lr": number(above=True),
    "min_lr": number(),
    "batch_size": Rule(int, low=1),
    "accumulate_steps": Rule(int, low=1),
    "repeats": Rule(int, low=1),
    "weight_decay": number(),
    "layer_decay": number(0.0, 1.0, above=True),
    "drop_path": number(0.0, 0.9),
    "mixup": number(),
    "cutmix": number(),
    "switch_prob": SHARE,
    "mix_prob": SHARE,
    "smoothing": number(0.0, 0.9),
    "erase_prob": SHARE,
    "rand_magnitude": number(0.0, 10.0),
    "rand_deviation": number(),
    "crop_scale": Rule(float, low=0.0, high=1.0, above=True, length=2, ordered=True),
    "flip_prob": SHARE,
    "size": SIDE,
    "resize": SIDE,
    "eval_every_epochs": Rule(int, low=1),
    "eval_batch_size": Rule(int, low=1),
    "log_every_steps": Rule(int, low=1),
    "workers": Rule(int, low=0),
    "backend": TRAINING["data.backend"],
    "max_pixels": TRAINING["data.max_pixels"],
    "max_bad_fraction": TRAINING["data.max_bad_fraction"],
    "dtype": Rule(str, choices=("float32", "bfloat16")),
    "random_init": Rule(bool),
    "save_predictions": Rule(bool),
    "seed": TRAINING["seed"],
}


def among(values: Mapping[str, Any], wrong: Collection[str], processes: int) -> list[str]:
    """Mistakes of right values among each other."""
    lines = [] if {"size", "resize"} & set(wrong) else resize_before_crop("", values["size"], values["resize"])
    for key in {"batch_size", "eval_batch_size"} - set(wrong):
        lines += batch_of_processes(key, values[key], processes)
    lines += validation_mistakes(values, wrong)
    if not {"epochs", "warmup_epochs"} & set(wrong) and values["warmup_epochs"] > values["epochs"]:
        lines.append(f"warmup_epochs: found {values['warmup_epochs']}, expected at most the {values['epochs']} epochs")
    if values["head_layer"] == 1 and values["pool"] != "cls":
        lines.append("pool: found patches, expected cls, since head_layer is 1: the projection was trained on the cls token")
    return lines
