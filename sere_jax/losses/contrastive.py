"""Contrast between an image's own other view and all other images of the batch (MoCo v3): arrays in, scalars out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float


def similarity_logits(queries: Float[jax.Array, "b e"], keys: Float[jax.Array, "b e"], temperature: float) -> Float[jax.Array, "b b"]:
    """cos(q_i, k_j) / temperature, every query of the global batch against every key of it.

    A plain product of global arrays: where the batch lies on many devices the compiler gathers the keys, which are narrow.
    """
    unit = [x.astype(jnp.float32) for x in (queries, keys)]
    unit = [x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-24)) for x in unit]
    return jnp.einsum("qe,ke->qk", *unit, precision="highest") / temperature


def info_nce(logits: Float[jax.Array, "b b"]) -> Float[jax.Array, ""]:
    """-mean_i log softmax(logits)_ii: query i must find key i. Source: van den Oord et al. 2018; MoCo v3, algorithm 1."""
    return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(logits, axis=-1)))
