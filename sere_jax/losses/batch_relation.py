"""The relation of channels over a batch: Barlow Twins' redundancy reduction. Arrays in, scalars out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float


def standardised(features: Float[jax.Array, "b d"], epsilon: float = 1e-5) -> Float[jax.Array, "b d"]:
    """Every channel to mean 0 and variance 1 over the batch: BatchNorm without affine, in float32."""
    x = features.astype(jnp.float32)
    centered = x - jnp.mean(x, axis=0)
    return centered * jax.lax.rsqrt(jnp.mean(jnp.square(centered), axis=0) + epsilon)


def barlow_loss(first: Float[jax.Array, "b d"], second: Float[jax.Array, "b d"], off_diagonal: float) -> Float[jax.Array, ""]:
    """sum_i (c_ii - 1)^2 + off_diagonal * sum_{i != j} c_ij^2, c = z_1^T z_2 / b of the standardised embeddings of two views.

    Source: Zbontar et al. 2021, equation 1. Under `jax.jit` over a sharded batch c is that of the global batch.
    """
    relation = jnp.einsum("bd,be->de", standardised(first), standardised(second), precision="highest") / first.shape[0]
    diagonal = jnp.diagonal(relation)
    on = jnp.sum(jnp.square(diagonal - 1.0))
    return on + off_diagonal * (jnp.sum(jnp.square(relation)) - jnp.sum(jnp.square(diagonal)))
