"""Initialisers that the field's recipes share and Flax does not have, and the rules by which each recipe initialises a ViT."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from sere_jax.models.variants import INITS


def uniform(bound: float) -> Any:
    """U(-bound, bound)."""

    def init(key: jax.Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def uniform_fan_in(fan_in: int) -> Any:
    """PyTorch's default for Linear and Conv, weight and bias alike: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    return uniform(fan_in**-0.5)


_SMALL, _XAVIER = nn.initializers.normal(0.02), nn.initializers.xavier_uniform()


class Pair(NamedTuple):
    """Two initialisers that belong together."""

    first: Any
    second: Any


def block_init(name: str, width: int) -> Pair:
    """Initialisers of the kernels in a block: of qkv, and of the other linear layers. Biases are 0 in every recipe.

    `normal` is N(0, 0.02) (DINO, iBOT). `mocov3` and `mae` are Xavier's uniform, bound sqrt(6 / (inputs + outputs)); MoCo v3
    takes q, k and v as three matrices, MAE as one. Source: the three methods' reference code.
    """
    _check(name)
    if name == "normal":
        return Pair(_SMALL, _SMALL)
    return Pair(uniform((6.0 / (2 * width)) ** 0.5) if name == "mocov3" else _XAVIER, _XAVIER)


def patch_init(name: str, width: int, inputs: int) -> Pair:
    """Initialisers of the patch embedding's kernel and bias; `inputs` is the number of values in a patch.

    `normal` keeps PyTorch's default for convolutions. `mocov3` and `mae` draw the kernel from Xavier's uniform distribution for a
    linear layer. MoCo v3's bias is 0; MAE's keeps the default.
    """
    _check(name)
    default = uniform_fan_in(inputs)
    if name == "normal":
        return Pair(default, default)
    return Pair(uniform((6.0 / (inputs + width)) ** 0.5), nn.initializers.zeros if name == "mocov3" else default)


def cls_init(name: str) -> Any:
    """Initialiser of the cls token: N(0, 0.02), and N(0, 1e-6) in MoCo v3."""
    _check(name)
    return nn.initializers.normal(1e-6) if name == "mocov3" else _SMALL


def _check(name: str) -> None:
    if name not in INITS:
        raise ValueError(f"init: found {name!r}, expected one of {', '.join(INITS)}")
