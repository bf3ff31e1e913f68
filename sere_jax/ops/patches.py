"""Selection of patches of a view by their positions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Bool, Float, Int

from sere_jax.types import Array


def gather_patches(patches: Float[jax.Array, "b v h w d"], indices: Int[Array, "b v cap"]) -> Float[jax.Array, "b v cap d"]:
    """Gather patches at flat positions, counted row by row. Padding (index -1) yields the first patch.

    Each example is gathered by itself, so a sharded batch does not move between devices.
    """
    flat = rearrange(patches, "b v h w d -> b v (h w) d")
    return jnp.take_along_axis(flat, jnp.maximum(jnp.asarray(indices), 0)[..., None], axis=2)


def visible_patches(masks: Bool[Array, "b v h w"], hidden: int) -> tuple[Int[jax.Array, "b v k"], Int[jax.Array, "b v n"]]:
    """Positions of the k = h w - `hidden` visible patches, and the rank of each position when visible patches come first.

    Each view must hide exactly `hidden` patches: the number of visible ones is a shape.
    """
    flat = rearrange(jnp.asarray(masks), "b v h w -> b v (h w)")
    order = jnp.argsort(flat, axis=-1, stable=True)  # False first
    return order[..., : flat.shape[-1] - hidden], jnp.argsort(order, axis=-1)
