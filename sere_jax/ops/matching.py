"""Which object each box of a detector is trained for, and which boxes are trained at all: static shapes, one image at a time.

Sources: Ren et al. 2015, Faster R-CNN; He et al. 2017, Mask R-CNN.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Key

from sere_jax.ops.boxes import iou
from sere_jax.ops.roi_align import sampling_weights

BACKGROUND, IGNORED = -1, -2  # instead of an object's number


def match(
    boxes: Float[jax.Array, "m 4"],
    objects: Float[jax.Array, "n 4"],
    *,
    valid_boxes: Bool[jax.Array, "m"],
    valid_objects: Bool[jax.Array, "n"],
    positive: float,
    negative: float,
    lowest: float | None = None,
) -> Int[jax.Array, "m"]:
    """The number of the object that each box stands for, or `BACKGROUND`, or `IGNORED`.

    A box stands for the object that it overlaps most (the first of equals) if the IoU is at least `positive`. It is background if no IoU
    reaches `negative`; in between, and where it is not valid, it is ignored. With `lowest`, every object also takes all boxes that
    overlap it most, if that IoU is at least `lowest`; the last of several objects wins such a box.

    >>> objects = jnp.array([[0.0, 0.0, 8.0, 8.0]])
    >>> boxes = jnp.array([[0.0, 0.0, 8.0, 7.0], [0.0, 0.0, 8.0, 4.0], [8.0, 8.0, 9.0, 9.0]])
    >>> true = jnp.ones(3, bool)
    >>> match(boxes, objects, valid_boxes=true, valid_objects=true[:1], positive=0.7, negative=0.3).tolist()
    [0, -2, -1]
    """
    usable = valid_objects[:, None] & valid_boxes[None]
    # Computed once: fused into two reductions, the same overlap could be rounded in two ways, and would not equal its own maximum.
    overlaps = jax.lax.optimization_barrier(jnp.where(usable, iou(objects[:, None], boxes[None]), -1.0))
    best = jnp.max(overlaps, axis=0)
    assigned = jnp.where(best >= positive, jnp.argmax(overlaps, axis=0), jnp.where(best < negative, BACKGROUND, IGNORED))
    if lowest is not None:
        most = jnp.max(overlaps, axis=1, keepdims=True)
        takes = usable & (overlaps == most) & (most >= lowest)
        taker = jnp.max(jnp.where(takes, jnp.arange(objects.shape[0])[:, None], -1), axis=0)
        assigned = jnp.where(taker >= 0, taker, assigned)
    return jnp.where(valid_boxes, assigned, IGNORED).astype(jnp.int32)


class Sample(NamedTuple):
    """Positions of the sampled boxes, positive ones first. Slots that are not `valid` repeat the others."""

    index: Int[jax.Array, "k"]  # type: ignore[assignment]  # hides tuple.index
    positive: Bool[jax.Array, "k"]
    valid: Bool[jax.Array, "k"]


def sample(key: Key[jax.Array, ""], assigned: Int[jax.Array, "m"], count: int, most_positive: int) -> Sample:
    """Draw `count` boxes that are not ignored: at most `most_positive` that stand for an object, the rest background.

    Each set of boxes is equally likely. Where too few are background, slots stay empty.
    """
    boxes = assigned.shape[0]
    noise = jax.random.uniform(key, (boxes,))
    is_positive, is_negative = assigned >= 0, assigned == BACKGROUND
    positives, negatives = (
        jax.lax.top_k(jnp.where(candidates, noise, -1.0), min(limit, boxes))[1]
        for candidates, limit in ((is_positive, most_positive), (is_negative, count))
    )
    of_positive = jnp.minimum(jnp.sum(is_positive), positives.shape[0])
    total = jnp.minimum(of_positive + jnp.sum(is_negative), count)
    slots = jnp.arange(count)
    wrapped = slots % jnp.maximum(total, 1)
    from_negatives = negatives[jnp.clip(wrapped - of_positive, 0, negatives.shape[0] - 1)]
    from_positives = positives[jnp.clip(wrapped, 0, positives.shape[0] - 1)]
    index = jnp.where(wrapped < of_positive, from_positives, from_negatives)
    return Sample(index, slots < of_positive, slots < total)


def mask_targets(
    masks: Bool[jax.Array, "n m m"], objects: Float[jax.Array, "n 4"], regions: Float[jax.Array, "n 4"], size: int
) -> Bool[jax.Array, "n s s"]:
    """Masks over their objects' boxes (`types.Objects`), drawn on size x size cells over other regions, one for each mask.

    RoIAlign of the mask, which is 0 outside of its box, where it reaches one half.
    """
    cells = masks.shape[-1]
    ring = jnp.pad(masks.astype(jnp.float32), ((0, 0), (1, 1), (1, 1)))
    scale = cells / jnp.maximum(objects[:, 2:] - objects[:, :2], 1e-6)
    starts, ends = ((regions[:, corners] - objects[:, :2]) * scale + 0.5 for corners in (slice(0, 2), slice(2, 4)))
    columns, rows = (sampling_weights(starts[:, axis], ends[:, axis], size, cells + 2) for axis in (0, 1))
    drawn = jnp.einsum("nph,nhw,nqw->npq", rows, ring, columns, precision="highest")
    return drawn >= 0.5 - 1e-6  # the sum of weights such as 1/3 may fall short of one half by rounding
