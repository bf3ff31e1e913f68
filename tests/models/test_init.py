"""How MoCo v3 and MAE start a ViT (SPEC 1.7; MAE's reference code). N(0, 0.02) is in test_vit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sere_jax.models.init import block_init
from sere_jax.models.variants import INITS
from sere_jax.models.vit import ViT
from sere_jax.ops.positions import sincos_positions

WIDTH, PATCH = 48, 4


def _start(rule: str, positions: str, scan: bool = False) -> dict:
    vit = ViT(width=WIDTH, depth=2, heads=3, patch_size=PATCH, image_size=16, init_rule=rule, positions=positions, scan_blocks=scan)
    return vit.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]


def _is_uniform(x: np.ndarray, bound: float) -> None:
    """U(-bound, bound): the largest of n numbers is within 1 % of the bound but for a chance of 0.99^n, the variance is bound^2 / 3."""
    x = np.asarray(x)
    assert 0.99 * bound < np.abs(x).max() <= bound
    np.testing.assert_allclose(x.std(), bound / 3**0.5, rtol=0.05)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize(("rule", "positions", "order"), [("mocov3", "sincos_rows", "rows"), ("mae", "sincos_columns", "columns")])
def test_xavier_starts(rule: str, positions: str, order: str, scan: bool):
    params = _start(rule, positions, scan)
    block = jax.tree.map(lambda x: x[1], params["blocks"]) if scan else params["blocks_1"]
    _is_uniform(block["attn"]["qkv"]["kernel"], (6 / (2 * WIDTH if rule == "mocov3" else 4 * WIDTH)) ** 0.5)
    _is_uniform(block["attn"]["proj"]["kernel"], (6 / (2 * WIDTH)) ** 0.5)
    for layer in ("fc1", "fc2"):
        _is_uniform(block["mlp"][layer]["kernel"], (6 / (5 * WIDTH)) ** 0.5)
    inputs = 3 * PATCH**2
    _is_uniform(params["patch_embed"]["proj"]["kernel"], (6 / (inputs + WIDTH)) ** 0.5)
    assert not any(np.any(block[a][b]["bias"]) for a, b in (("attn", "qkv"), ("attn", "proj"), ("mlp", "fc1"), ("mlp", "fc2")))
    bias = np.abs(params["patch_embed"]["proj"]["bias"]).max()
    assert bias == 0 if rule == "mocov3" else 0.8 * inputs**-0.5 < bias <= inputs**-0.5
    np.testing.assert_allclose(np.std(params["cls_token"]), 1e-6 if rule == "mocov3" else 0.02, rtol=0.4)
    np.testing.assert_array_equal(params["pos_embed"], sincos_positions(WIDTH, (4, 4), order))


def test_an_unknown_rule_is_named_with_those_there_are():
    with pytest.raises(ValueError, match="found 'moco', expected one of " + ", ".join(INITS)):
        block_init("moco", 4)
