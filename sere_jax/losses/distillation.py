"""Self-distillation between prototype assignments (DINO; iBOT's cls loss is the same): arrays in, scalars out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float


def teacher_probabilities(
    logits: Float[jax.Array, "*tokens k"], center: Float[jax.Array, "1 k"], temperature: Float[jax.Array, ""] | float
) -> Float[jax.Array, "*tokens k"]:
    """softmax((logits - center) / temperature) over prototypes. Source: DINO, Caron et al. 2021, eq. 1."""
    return jax.nn.softmax((logits.astype(jnp.float32) - center) / temperature, axis=-1)


def distillation_loss(
    teacher: Float[jax.Array, "b t k"],
    student_global: Float[jax.Array, "b t k"],
    student_local: Float[jax.Array, "b l k"],
    temperature: float,
) -> Float[jax.Array, ""]:
    """Mean cross-entropy of student against teacher over all pairs (teacher view i, student view j != i), and over the batch.

    With t global and l local crops there are t (t + l) - t terms::

        for i in range(t):
            for j in range(t + l):
                if j != i:
                    loss -= mean_b(sum_k(teacher[:, i] * log_softmax(student[:, j] / temperature)))

    Each student view is compared with the sum of its teachers, so its log-softmax is computed once.
    """
    views, local_views = student_global.shape[1], student_local.shape[1]
    total = jnp.sum(teacher, axis=1, keepdims=True)
    terms = views * (views + local_views) - views
    loss = _cross_entropy(total - teacher, student_global, temperature)
    if local_views:
        loss += _cross_entropy(jnp.broadcast_to(total, (*student_local.shape[:2], total.shape[-1])), student_local, temperature)
    return loss / (terms * teacher.shape[0])


def _cross_entropy(targets: Float[jax.Array, "b v k"], logits: Float[jax.Array, "b v k"], temperature: float) -> Float[jax.Array, ""]:
    return -jnp.sum(targets * jax.nn.log_softmax(logits.astype(jnp.float32) / temperature, axis=-1))


def update_center(center: Float[jax.Array, "1 k"], batch_mean: Float[jax.Array, "k"], momentum: float) -> Float[jax.Array, "1 k"]:
    """The running center of the teacher's logits: momentum * center + (1 - momentum) * mean over the global batch and its views."""
    return momentum * center + (1.0 - momentum) * batch_mean


def entropy(probabilities: Float[jax.Array, "*tokens k"]) -> Float[jax.Array, ""]:
    """Mean Shannon entropy in nats: 0 when every token picks one prototype, ln K when assignments are uniform."""
    return jnp.mean(token_entropy(probabilities))


def token_entropy(probabilities: Float[jax.Array, "*tokens k"]) -> Float[jax.Array, "*tokens"]:
    """Shannon entropy of each token's assignment in nats."""
    return -jnp.sum(jax.scipy.special.xlogy(probabilities, probabilities), axis=-1)
