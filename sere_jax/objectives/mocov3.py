"""MoCo v3: the student's prediction of one view finds the teacher's projection of the other. Source: Chen et al. 2021, algorithm 1."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from sere_jax.losses.contrastive import info_nce, similarity_logits
from sere_jax.objectives.base import stateless
from sere_jax.types import Metrics, Objective, Outputs, Request, Views

STUDENT = Request("mocov3", "global", "cls", "post", "student")
TEACHER = Request("mocov3", "global", "cls", "post", "teacher")
REQUESTS = (STUDENT, TEACHER)


def mocov3(*, temperature: float, batch_size: int) -> Objective:
    """2 T (InfoNCE(q1, k2) + InfoNCE(q2, k1)) with queries q of the student, keys k of the teacher, temperature T.

    `batch_size` is the size of a micro-batch, whose other images are the negatives. A random guess costs 4 T ln(batch_size).
    """

    def loss(outputs: Outputs, views: Views, step: jax.Array) -> tuple[jax.Array, Metrics]:
        queries, keys = outputs[STUDENT], outputs[TEACHER]
        logits = [similarity_logits(queries[:, i], keys[:, 1 - i], temperature) for i in (0, 1)]
        value = 2 * temperature * (info_nce(logits[0]) + info_nce(logits[1]))
        correct = jnp.stack([jnp.argmax(x, axis=-1) == jnp.arange(x.shape[0]) for x in logits])
        return value, {"mocov3": value, "mocov3_accuracy": jnp.mean(correct, dtype=jnp.float32)}

    references = {"mocov3": 4 * temperature * math.log(batch_size), "mocov3_accuracy": 1 / batch_size}
    return stateless(REQUESTS, loss, references)
