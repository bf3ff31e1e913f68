"""Normalisation in float32: vectors to unit length, channels to mean 0 and variance 1."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float


class Standardised(NamedTuple):
    """Normalised values, and the statistics they were normalised with (variance biased)."""

    values: Float[jax.Array, "*batch d"]
    mean: Float[jax.Array, "d"]
    var: Float[jax.Array, "d"]


def unit_length(x: Float[jax.Array, "*batch d"]) -> Float[jax.Array, "*batch d"]:
    """x / max(|x|, 1e-12) along the last axis, as PyTorch's `normalize`; the gradient at zero is finite."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-24))


def standardise(x: Float[jax.Array, "*batch d"], epsilon: float = 1e-5) -> Standardised:
    """(x - mean) / sqrt(var + epsilon) over all axes but the last: BatchNorm without affine.

    Under `jax.jit` over a sharded batch the statistics are those of the global batch.
    """
    x = x.astype(jnp.float32)
    axes = tuple(range(x.ndim - 1))
    mean = jnp.mean(x, axes)
    centered = x - mean
    var = jnp.mean(jnp.square(centered), axes)
    return Standardised(centered * jax.lax.rsqrt(var + epsilon), mean, var)
