"""Contrast between an image's own other view and all other images of the batch (MoCo v3): arrays in, scalars out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float

from sere_jax.ops.normalise import unit_length


def similarity_logits(queries: Float[jax.Array, "b e"], keys: Float[jax.Array, "b e"], temperature: float) -> Float[jax.Array, "b b"]:
    """cos(q_i, k_j) / temperature, every query of the global batch against every key of it.

    This is a plain product of global arrays. On many devices the compiler gathers the keys, which are narrow.
    """
    return jnp.einsum("qe,ke->qk", unit_length(queries), unit_length(keys), precision="highest") / temperature


def info_nce(logits: Float[jax.Array, "b b"]) -> Float[jax.Array, ""]:
    """-mean_i log softmax(logits)_ii: query i must find key i. Source: van den Oord et al. 2018; MoCo v3, algorithm 1."""
    return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(logits, axis=-1)))
