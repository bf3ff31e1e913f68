"""Losses of a detector: of anchors, of boxes and their classes, and of masks. All are sums over a batch divided by a number of samples.

Sources: Ren et al. 2015, Faster R-CNN; Cai and Vasconcelos 2018, Cascade R-CNN; Rezatofighi et al. 2019, GIoU; He et al. 2017, Mask R-CNN.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Bool, Float, Int

from sere_jax.ops.boxes import giou
from sere_jax.types import Array

BETA = 1 / 9  # the error from which the anchors' loss is linear
GIOU_WEIGHT = 10.0


def objectness_loss(logits: Float[Array, "*b k"], positive: Bool[Array, "*b k"], valid: Bool[Array, "*b k"]) -> Float[jax.Array, ""]:
    """Binary cross-entropy of the sampled anchors, divided by their number."""
    return _mean_over(binary_cross_entropy(logits, positive), valid, valid)


def code_loss(
    codes: Float[Array, "*b k 4"],
    targets: Float[Array, "*b k 4"],
    positive: Bool[Array, "*b k"],
    valid: Bool[Array, "*b k"],
) -> Float[jax.Array, ""]:
    """Smooth L1 of the positive anchors' codes, summed over the four and divided by the number of all sampled anchors.

    An error e costs e^2 / (2 `BETA`) below `BETA`, and |e| - `BETA` / 2 above.
    """
    errors = jnp.abs(jnp.asarray(codes, jnp.float32) - targets)
    costs = jnp.where(errors < BETA, 0.5 * errors**2 / BETA, errors - 0.5 * BETA)
    return _mean_over(jnp.sum(costs, axis=-1), positive & valid, valid)


def class_loss(logits: Float[Array, "*b k c"], labels: Int[Array, "*b k"], valid: Bool[Array, "*b k"]) -> Float[jax.Array, ""]:
    """Cross-entropy of the sampled boxes, divided by their number; the last class is the background."""
    costs = optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(logits, jnp.float32), jnp.asarray(labels))
    return _mean_over(costs, valid, valid)


def box_loss(
    boxes: Float[Array, "*b k 4"],
    targets: Float[Array, "*b k 4"],
    positive: Bool[Array, "*b k"],
    valid: Bool[Array, "*b k"],
) -> Float[jax.Array, ""]:
    """10 (1 - GIoU) of the positive boxes, decoded, divided by the number of all sampled boxes, background included.

    >>> boxes = jnp.array([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 1.0, 1.0]])
    >>> round(float(box_loss(boxes, boxes.at[0, 2].set(8.0), jnp.array([True, False]), jnp.array([True, True]))), 4)
    2.5
    """
    return GIOU_WEIGHT * _mean_over(1.0 - giou(jnp.asarray(boxes, jnp.float32), jnp.asarray(targets)), positive & valid, valid)


def mask_loss(logits: Float[Array, "*b k s s"], targets: Bool[Array, "*b k s s"], valid: Bool[Array, "*b k"]) -> Float[jax.Array, ""]:
    """The mean binary cross-entropy of the cells of all masks; 0 where there is none. The logits are those of each object's class."""
    return _mean_over(jnp.mean(binary_cross_entropy(logits, targets), axis=(-2, -1)), valid, valid)


def binary_cross_entropy(logits: Float[Array, "*n"], targets: Bool[Array, "*n"]) -> Float[jax.Array, "*n"]:
    """-log sigmoid(x) where the target is true, -log(1 - sigmoid(x)) elsewhere."""
    return optax.sigmoid_binary_cross_entropy(jnp.asarray(logits, jnp.float32), jnp.asarray(targets, jnp.float32))


def _mean_over(costs: jax.Array, summed: Array, counted: Array) -> jax.Array:
    """The sum of the costs where `summed`, divided by the number of `counted`, at least 1."""
    return jnp.sum(jnp.where(summed, costs, 0.0)) / jnp.maximum(jnp.sum(counted), 1)
