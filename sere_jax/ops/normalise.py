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

    The statistics are those of the global batch: under `jax.jit` over a sharded batch, and inside `jax.shard_map`.
    """
    x = x.astype(jnp.float32)
    mean = _mean(x)
    centered = x - mean
    var = _mean(jnp.square(centered))
    return Standardised(centered * jax.lax.rsqrt(var + epsilon), mean, var)


def _mean(x: Float[jax.Array, "*batch d"]) -> Float[jax.Array, "d"]:
    """The mean over all axes but the last, and over the devices that each have rows of their own."""
    of_device = jnp.mean(x, tuple(range(x.ndim - 1)))
    return jax.lax.pmean(of_device, mesh_axes()) if mesh_axes() else of_device


def mesh_axes() -> tuple[str, ...]:
    """The mesh axes over which the surrounding `jax.shard_map` cuts; () outside of one."""
    return tuple(jax.sharding.get_abstract_mesh().manual_axes)
