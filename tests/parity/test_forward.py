"""The ViT's stages against PyTorch from the same weights and images: at its own size, at a local crop's, and not square."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
import torch

from sere_jax.models.variants import VARIANTS
from sere_jax.models.vit import PatchEmbed, ViT
from tests import micro
from tests.deviations import Deviation
from tests.oracles import torch_vit
from tests.parity import weights

SIZES = [(224, 224), (96, 96), (224, 320)]
LIMIT = 1e-4  # the issue's, absolute; tokens are of order 1 to 10 here


def _ours(shape: tuple[int, int, int], params: Any, images: np.ndarray) -> dict[str, np.ndarray]:
    width, depth, heads = shape
    module = ViT(width=width, depth=depth, heads=heads)

    def forward(params: Any, images: jax.Array) -> Any:
        return module.apply(
            {"params": params}, images, layers=(0, depth - 1), attention=True, capture_intermediates=lambda m, _: isinstance(m, PatchEmbed)
        )

    features, kept = micro.jit(forward)(params, images)
    (embedded,) = kept["intermediates"]["patch_embed"]["__call__"]
    flat = {"patch embedding": embedded, "patches": features.patches, "patches before the norm": features.patches_prenorm}
    stages = {name: x.reshape(len(images), -1, width) for name, x in flat.items()}
    stages |= {"first block": features.layers[0], "last block": features.layers[1], "cls": features.cls}
    return {name: np.asarray(x) for name, x in (stages | {"last attention": features.attention}).items()}


def _theirs(shape: tuple[int, int, int], params: Any, images: np.ndarray) -> dict[str, np.ndarray]:
    vit = torch_vit.ViT(*shape, patch_size=16, image_size=224).double()
    weights.load(vit, params)
    with torch.no_grad():
        stages = vit(torch.from_numpy(images).double().permute(0, 3, 1, 2))
    named = {"patch embedding": stages.embedded, "first block": stages.blocks[0], "last block": stages.blocks[-1], "cls": stages.cls}
    named |= {"patches": stages.patches, "patches before the norm": stages.prenorm.flatten(2).transpose(1, 2)}
    return weights.arrays(named | {"last attention": stages.attention})


def _compare(shape: tuple[int, int, int], size: tuple[int, int], scale: float, deviation: Deviation, name: str) -> None:
    shapes = jax.eval_shape(ViT(*shape).init, jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))["params"]
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: np.asarray(x) + (getattr(path[-1], "key", "") == "scale"), micro.random_like(shapes, scale=scale)
    )
    images = np.random.default_rng(1).normal(size=(2, *size, 3)).astype(np.float32)
    ours, theirs = _ours(shape, params, images), _theirs(shape, params, images)
    assert ours.keys() == theirs.keys()
    attention = theirs["last attention"]
    assert np.abs(theirs["last block"]).max() > 3 and attention.max() > 5 / attention.shape[-1], "too tame to show anything"
    for stage, expected in theirs.items():
        assert ours[stage].shape == expected.shape
        deviation(f"forward, {name}", f"{stage}, {size[0]}x{size[1]}", np.abs(ours[stage] - expected).max(), LIMIT)


@pytest.mark.parametrize("size", SIZES)
def test_micro(size, deviation):
    _compare((48, 2, 3), size, 0.15, deviation, "micro")


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_vit_small(size, deviation):
    _compare(VARIANTS["vits"], size, 0.04, deviation, "ViT-S")
