"""Cross-entropy of pixels, of which some are ignored."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from sere_jax.ops.pooling import resize_bilinear
from sere_jax.types import Array

Average = Literal["all", "counted"]
AVERAGES: tuple[Average, ...] = ("all", "counted")


def pixel_cross_entropy(logits: Float[Array, "b h w k"], targets: Int[Array, "b H W"], average: Average = "all") -> Float[jax.Array, ""]:
    """-log softmax(logits)[target] of each pixel, after bilinear interpolation of the logits to the size of the targets.

    A target below 0 is ignored: its loss is 0. `all` divides by the number of all pixels, so that ignored ones make the loss smaller
    (MMSegmentation 0.18, with which UperNet's numbers were published); `counted` divides by the number of the others (ImageNet-S).

    >>> targets = jnp.array([[[0, -1]]])
    >>> round(float(pixel_cross_entropy(jnp.zeros((1, 1, 2, 4)), targets)), 4)  # half of ln 4
    0.6931
    """
    large = resize_bilinear(jnp.asarray(logits), (targets.shape[1], targets.shape[2]))
    targets = jnp.asarray(targets)
    counted = targets >= 0
    log_probabilities = jnp.take_along_axis(jax.nn.log_softmax(large, axis=-1), jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    total = -jnp.sum(jnp.where(counted, log_probabilities, 0.0))
    return total / (targets.size if average == "all" else jnp.maximum(jnp.sum(counted), 1))
