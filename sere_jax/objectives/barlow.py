"""Barlow Twins' batch relation: the comparison of self-relation with relation over a batch (TPAMI Table 11)."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from sere_jax.losses.batch_relation import barlow_loss
from sere_jax.objectives.base import stateless
from sere_jax.types import Metrics, Objective, Outputs, Request, Views

Tokens = Literal["cls", "patches"]
Norm = Literal["post", "pre"]


def requests(*, tokens: Tokens, norm: Norm) -> tuple[Request, ...]:
    """The student's embeddings of its global crops."""
    return (Request("batch", "global", tokens, norm, "student"),)


def batch_relation(*, tokens: Tokens, norm: Norm, off_diagonal: float, width: int) -> Objective:
    """Barlow's loss between the student's embeddings of its two global crops; patches are averaged after the head.

    `width` is the width of an embedding, and also the loss of unrelated embeddings. The method has no teacher.
    """
    (student,) = requests(tokens=tokens, norm=norm)

    def loss(outputs: Outputs, views: Views, step: jax.Array) -> tuple[jax.Array, Metrics]:
        answer = outputs[student]
        embeddings = answer if tokens == "cls" else jnp.mean(answer.astype(jnp.float32), axis=(2, 3))
        value = barlow_loss(embeddings[:, 0], embeddings[:, 1], off_diagonal)
        return value, {"batch": value}

    return stateless((student,), loss, {"batch": float(width)})
