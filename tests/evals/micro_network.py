"""A network that evaluations can run in a second: a random ViT of depth 2 and width 48 on 16-pixel images, and photographs."""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from sere_jax.evals.network import Network
from sere_jax.models.vit import ViT

VIT = ViT(width=48, depth=2, heads=3, patch_size=4, image_size=16)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@functools.cache
def init(seed: int):
    return VIT.init(jax.random.key(seed), jnp.zeros((1, 16, 16, 3)))["params"]


def apply(params, images, *, attention: bool = False, layers=(), layers_norm="pre"):
    return VIT.apply({"params": params}, images, attention=attention, layers=layers, layers_norm=layers_norm)


def network(name: str = "micro", seed: int = 3) -> Network:
    return Network(name, apply, init(seed), 16, 18, 4, MEAN, STD, init, {"network": "teacher", "step": 5}, depth=VIT.depth)


def photographs(directory: Path, count: int = 4, classes: int = 0) -> Path:
    """PNG files of smooth coloured noise, 60 x 40; in `classes` sub-folders where there are to be labels."""
    rng = np.random.default_rng(0)
    for i in range(count):
        folder = directory / f"class{i % classes}" if classes else directory
        folder.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8))
        coarse.resize((60, 40), Image.Resampling.BICUBIC).save(folder / f"photo{i}.png")
    return directory
