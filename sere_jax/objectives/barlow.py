"""Barlow Twins' batch relation: the comparison of self-relation with relation over a batch (TPAMI Table 11)."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from sere_jax.losses.batch_relation import barlow_loss
from sere_jax.objectives.base import Applied
from sere_jax.types import Objective, Outputs, PyTree, Request, Views


def batch_relation(*, tokens: Literal["cls", "patches"], norm: Literal["post", "pre"], off_diagonal: float, width: int) -> Objective:
    """Barlow's loss between the student's embeddings of its two global crops; patches are averaged after the head.

    `width` is that of an embedding, also the loss of embeddings that have nothing to do with one another. No teacher is in it.
    """
    request = Request("batch", "global", tokens, norm, "student")

    def apply(outputs: Outputs, views: Views, state: PyTree, step: jax.Array) -> Applied:
        found = outputs[request]
        embeddings = found if tokens == "cls" else jnp.mean(found.astype(jnp.float32), axis=(2, 3))
        loss = barlow_loss(embeddings[:, 0], embeddings[:, 1], off_diagonal)
        return loss, state, {"batch": loss}

    return Objective((request,), dict, apply, {"batch": float(width)})
