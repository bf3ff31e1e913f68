"""Classification with labels: smoothed targets, and the cross-entropy with targets that may be mixtures of classes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from sere_jax.types import Array


def smoothed_targets(labels: Int[Array, "b"], classes: int, smoothing: float = 0.0) -> Float[jax.Array, "b k"]:
    """Probabilities of the classes: smoothing / k for each, and 1 - smoothing more for the label. Source: Szegedy et al. 2016.

    >>> [round(float(share), 2) for share in smoothed_targets(jnp.array([1]), 4, 0.2)[0]]
    [0.05, 0.85, 0.05, 0.05]
    """
    return smoothing / classes + (1.0 - smoothing) * jax.nn.one_hot(labels, classes, dtype=jnp.float32)


def soft_cross_entropy(logits: Float[Array, "b k"], targets: Float[Array, "b k"]) -> Float[jax.Array, ""]:
    """-sum_k target_k log softmax(logits)_k in float32, averaged over the images of the batch."""
    return -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(jnp.asarray(logits).astype(jnp.float32), axis=-1), axis=-1))
