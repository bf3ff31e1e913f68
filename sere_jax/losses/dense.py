"""Self-distillation between the prototype assignments of patches (iBOT, DINO+): arrays in, scalars out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float


def token_cross_entropy(
    teacher: Float[jax.Array, "*tokens k"], student: Float[jax.Array, "*tokens k"], temperature: float
) -> Float[jax.Array, "*tokens"]:
    """-sum_k(teacher * log_softmax(student / temperature)) of each token: teacher probabilities against the student's logits."""
    return -jnp.sum(teacher * jax.nn.log_softmax(student.astype(jnp.float32) / temperature, axis=-1), axis=-1)


def mean_of_counted(tokens: Float[jax.Array, "b v t"], counted: Bool[jax.Array, "b v t"]) -> Float[jax.Array, "b v"]:
    """The mean over a view's counted tokens::

        for b, v:
            mean[b, v] = sum(tokens[b, v, t] for t if counted[b, v, t]) / max(number of counted t, 1)

    A view without a counted token gives 0. Source: iBOT's patch loss.
    """
    return jnp.sum(jnp.where(counted, tokens, 0.0), axis=-1) / jnp.maximum(jnp.sum(counted, axis=-1), 1)
