"""Predicting the pixels of hidden patches (MAE): arrays in, scalars out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Bool, Float


def patch_pixels(images: Float[jax.Array, "b v H W c"], patch: int) -> Float[jax.Array, "b v n p"]:
    """Cut images into patches of p = patch^2 c values, ordered by row, column and channel; the patches are ordered row by row."""
    return rearrange(images, "b v (h p) (w q) c -> b v (h w) (p q c)", p=patch, q=patch)


def normalise_patches(pixels: Float[jax.Array, "*patches p"]) -> Float[jax.Array, "*patches p"]:
    """(x - mean) / sqrt(var + 1e-6) over a patch's numbers, with the unbiased variance. Source: MAE's code, norm_pix_loss."""
    mean = jnp.mean(pixels, axis=-1, keepdims=True)
    return (pixels - mean) * jax.lax.rsqrt(jnp.var(pixels, axis=-1, keepdims=True, ddof=1) + 1e-6)


def pixel_loss(
    predicted: Float[jax.Array, "*views n p"], target: Float[jax.Array, "*views n p"], hidden: Bool[jax.Array, "*views n"]
) -> Float[jax.Array, ""]:
    """Mean squared error over the values of a patch, averaged over the hidden patches of the whole batch."""
    errors = jnp.mean(jnp.square(predicted.astype(jnp.float32) - target), axis=-1)
    return jnp.sum(errors * hidden) / jnp.sum(hidden)
