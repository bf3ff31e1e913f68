"""Self-distillation between the prototype assignments of patches (iBOT, DINO+): arrays in, scalars out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float


def patch_cross_entropy(
    teacher: Float[jax.Array, "b v t k"],
    student: Float[jax.Array, "b v t k"],
    counted: Bool[jax.Array, "b v t"],
    temperature: float,
) -> Float[jax.Array, "b v"]:
    """Mean cross-entropy over a view's counted tokens: teacher probabilities against softmax(student / temperature)::

        for b, v:
            total = sum(-sum_k(teacher[b, v, t] * log_softmax(student[b, v, t] / temperature)) for t if counted[b, v, t])
            loss[b, v] = total / max(number of counted t, 1)

    A view without a counted token gives 0. Source: iBOT's patch loss.
    """
    tokens = -jnp.sum(teacher * jax.nn.log_softmax(student.astype(jnp.float32) / temperature, axis=-1), axis=-1)
    return jnp.sum(jnp.where(counted, tokens, 0.0), axis=-1) / jnp.maximum(jnp.sum(counted, axis=-1), 1)
