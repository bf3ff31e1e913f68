"""Random keys, folded from (seed, step, position in the global batch): equal on any devices and after a restart."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Int, Key

from sere_jax.types import Array


def example_keys(seed: int, step: int | Int[Array, ""], count: int) -> Key[jax.Array, "b"]:
    """One key for each of the first `count` examples of the global batch: fold_in(fold_in(key(seed), step), position)."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(count))


def split_uses(keys: Key[jax.Array, "b"]) -> tuple[Key[jax.Array, "b"], Key[jax.Array, "b"]]:
    """Split each example's key into one for the colours of its crops and one for drop path."""
    colours, paths = jax.vmap(jax.random.split, out_axes=1)(keys)
    return colours, paths
