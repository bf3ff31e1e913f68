"""A fine-tuning that takes seconds: the micro network on a few small photographs, without augmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs.eval import finetune
from sere_jax.commands import evaluate
from sere_jax.evals.network import Network
from sere_jax.evals.trained.settings import Settings
from tests.evals import micro_network

PLAIN = {
    "mixup": 0.0,
    "cutmix": 0.0,
    "erase_prob": 0.0,
    "rand_magnitude": 0.0,
    "drop_path": 0.0,
    "epochs": 2,
    "warmup_epochs": 1,
    "batch_size": 8,
    "base_lr": 0.05,
    "random_init": False,
    "log_every_steps": 1,
}


def network() -> Network:
    """The micro network, which can be trained."""
    return micro_network.network()._replace(module=micro_network.VIT, depth=2)


def config(photographs: Path, **changes: Any) -> ConfigDict:
    """The shipped config with a small batch and without augmentation, on a folder for training and test."""
    source = f"folder:{photographs}"
    result = finetune.get_config()
    result.update({"train": source, "test": source} | PLAIN | changes)
    return result


def settings(photographs: Path, **changes: Any) -> Settings:
    """The same as settings."""
    return evaluate.settings(config(photographs, **changes), [])
