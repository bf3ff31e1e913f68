"""Workdirs of runs, written by hand: config, metrics, an evaluation and a figure."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from PIL import Image

from sere_jax.config.check import to_json
from tests import micro

LAUNCH = {
    "config_file": "configs/small.py:source=<mine>",
    "changed": {
        "schedule.epochs": {"file": 100, "run": 20, "by": "command line"},
        "optimizer.warmup_epochs": {"file": 10, "run": 2, "by": "what follows from it"},
    },
}


def workdir(directory: Path, *, steps: int = 40, figures: int = 1, side: int = 64, **changes: object) -> Path:
    """One workdir; `changes` are keys of its config."""
    config = micro.config(local_count=2)
    config.update_from_flattened_dict({"schedule.total_steps": 40, **changes})
    (directory / "eval").mkdir(parents=True)
    (directory / "figures").mkdir()
    (directory / "config.json").write_text(to_json(config))
    (directory / "launch.json").write_text(json.dumps(LAUNCH))
    lines = [
        {
            "step": step,
            "time": 0.0,
            "loss": 5 + math.exp(-step / 9),
            "dino": 2 + math.exp(-step / 9),
            "teacher_entropy": 1.5,
            "speed/images_per_second": 30.0,
            "speed/data_wait": 0.25,
            "knn/k10/top1": step / 100,
            "knn/k10/top1/random": 0.05,
        }
        for step in range(1, steps + 1)
    ]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 41, "lo')
    results = [{"name": "<random>", "scores": {"top1": 0.1}, "baseline": True}, {"name": "run", "step": 40, "scores": {"top1": 0.4}}]
    (directory / "eval" / "logistic.json").write_text(
        json.dumps({"protocol": "logistic", "results": results, "notes": ["5 images & more"]})
    )
    for number in range(figures):
        noise = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(noise).save(directory / "figures" / ("pca.png" if not number else f"noise{number}.png"))
    return directory
