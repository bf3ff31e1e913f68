"""Every published backbone at full size, to every format and back by way of files, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from sere_jax.commands.export import export
from sere_jax.interop.files import write_tensors
from sere_jax.interop.tables import flatten
from sere_jax.models.resnet import ResNet
from sere_jax.models.variants import RESNETS, VARIANTS
from sere_jax.models.vit import ViT
from sere_jax.weights.read import read_weights
from tests.interop.test_timm import _equal


def _variables(module: ViT | ResNet) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters and running statistics as noise. Half precision, of which export makes nothing else: half the bytes to move."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    rng = np.random.default_rng(0)
    made = jax.tree.map(lambda x: rng.random(x.shape, np.float32).astype(np.float16), shapes)
    return made["params"], made.get("batch_stats", {})


@pytest.mark.slow
@pytest.mark.parametrize("variant", [*VARIANTS, *RESNETS])
def test_there_and_back(variant: str, tmp_path: Path):
    pytest.importorskip("torch")  # the .pth
    vit = variant in VARIANTS
    width, depth, heads = VARIANTS.get(variant, (0, 0, 0))
    params, batch_stats = _variables(ViT(width=width, depth=depth, heads=heads) if vit else ResNet(*RESNETS[variant]))
    stats = {"backbone": batch_stats} if batch_stats else {}
    named = flatten({"backbone": params, **({"batch_stats": stats} if stats else {})})
    start = tmp_path / "start.npz"
    write_tensors(start, named, {"network": "teacher", "architecture": {"heads": heads}})
    places = {"timm": "x.safetensors", "dino": "x.pth", "ibot": "x.safetensors", "sere": "x.safetensors", "npz": "x.npz", "hf_vit": "x"}
    for layout, name in places.items():
        if layout == "hf_vit" and not vit:
            continue
        export(start, tmp_path / name, layout=layout, dtype="float16")
        found = read_weights(tmp_path / name, heads=heads)
        assert _equal(found.params, {"backbone": params}), layout
        assert _equal(found.batch_stats, stats), layout
