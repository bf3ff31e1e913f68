"""The relation of channels over a batch: Barlow Twins' redundancy reduction. Arrays in, scalars out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float

from sere_jax.ops.normalise import standardise


def barlow_loss(first: Float[jax.Array, "b d"], second: Float[jax.Array, "b d"], off_diagonal: float) -> Float[jax.Array, ""]:
    """sum_i (c_ii - 1)^2 + off_diagonal * sum_{i != j} c_ij^2, c = z_1^T z_2 / b of the standardised embeddings of two views.

    Source: Zbontar et al. 2021, equation 1. Under `jax.jit` over a sharded batch c is that of the global batch.
    """
    z_1, z_2 = standardise(first).values, standardise(second).values
    relation = jnp.einsum("bd,be->de", z_1, z_2, precision="highest") / first.shape[0]
    diagonal = jnp.diagonal(relation)
    on = jnp.sum(jnp.square(diagonal - 1.0))
    return on + off_diagonal * (jnp.sum(jnp.square(relation)) - jnp.sum(jnp.square(diagonal)))
