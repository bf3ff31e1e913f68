"""The region proposal network: which anchors hold an object, and how they must move to fit it. Source: Ren et al. 2015, Faster R-CNN.

Anchors of all levels lie on one axis, level by level and row by row; a box of one image is (left, top, right, bottom) in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Key

from sere_jax.ops import boxes as box_ops
from sere_jax.ops.matching import match, sample
from sere_jax.ops.nms import nms
from sere_jax.types import Objects

RATIOS = (0.5, 1.0, 2.0)
SCALE = 8  # the side of a square anchor in strides
POSITIVE, NEGATIVE = 0.7, 0.3  # IoU
SUPPRESSED = 0.7  # IoU from which the weaker of two proposals of a level is dropped
_SMALL = nn.initializers.normal(0.01)


class Scores(NamedTuple):
    """What the network says of every anchor."""

    objectness: Float[jax.Array, "b a"]  # logits
    codes: Float[jax.Array, "b a 4"]  # relative to the anchors


class RegionProposals(nn.Module):
    """The levels of a pyramid -> `Scores`: a 3 x 3 convolution with ReLU and two linear layers, the same for all levels."""

    channels: int = 256
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, levels: Sequence[jax.Array]) -> Scores:
        shared = nn.Conv(self.channels, (3, 3), dtype=self.dtype, kernel_init=_SMALL, name="conv")
        objectness = nn.Dense(len(RATIOS), kernel_init=_SMALL, name="objectness")
        codes = nn.Dense(4 * len(RATIOS), kernel_init=_SMALL, name="codes")
        hidden = [nn.relu(shared(x)).astype(jnp.float32) for x in levels]
        batch = hidden[0].shape[0]
        return Scores(
            jnp.concatenate([objectness(x).reshape(batch, -1) for x in hidden], axis=1),
            jnp.concatenate([codes(x).reshape(batch, -1, 4) for x in hidden], axis=1),
        )


class Anchors(NamedTuple):
    """The anchors of all levels, and how many each level has."""

    boxes: Float[np.ndarray, "a 4"]
    counts: tuple[int, ...]


def pyramid_anchors(levels: Sequence[jax.Array], strides: Sequence[int]) -> Anchors:
    """The anchors of the maps [b, h, w, d] of a pyramid: at each cell one for each of `RATIOS`, of side `SCALE` strides.

    >>> anchors = pyramid_anchors([jnp.zeros((1, 2, 2, 3)), jnp.zeros((1, 1, 1, 3))], [4, 8])
    >>> anchors.boxes[1].tolist(), anchors.counts
    ([-16.0, -16.0, 16.0, 16.0], (12, 3))
    """
    parts = [
        box_ops.anchors(x.shape[1], x.shape[2], stride, float(SCALE * stride), RATIOS).reshape(-1, 4)
        for x, stride in zip(levels, strides, strict=True)
    ]
    return Anchors(np.concatenate(parts), tuple(len(part) for part in parts))


class AnchorTargets(NamedTuple):
    """The sampled anchors of an image, and what is right for them; see `ops.matching.Sample`."""

    index: jax.Array  # type: ignore[assignment]  # hides tuple.index; int [k]
    codes: Float[jax.Array, "k 4"]  # 0 where not positive
    positive: Bool[jax.Array, "k"]
    valid: Bool[jax.Array, "k"]


def anchor_targets(
    key: Key[jax.Array, ""], anchors: Float[np.ndarray, "a 4"], objects: Objects, size: jax.Array, count: int
) -> AnchorTargets:
    """Sample `count` anchors of one image, at most half of them positive, among those that lie wholly inside the image of `size`.

    An anchor is positive from an IoU of 0.7 with an object, and where no anchor overlaps an object more, if that is at least 0.3. It is
    background below 0.3.
    """
    boxes = jnp.asarray(anchors)
    inside = (boxes[:, 0] >= 0) & (boxes[:, 1] >= 0) & (boxes[:, 2] < size[1]) & (boxes[:, 3] < size[0])
    limits = {"positive": POSITIVE, "negative": NEGATIVE, "lowest": NEGATIVE}
    object_boxes = jnp.asarray(objects.boxes)
    assigned = match(boxes, object_boxes, valid_boxes=inside, valid_objects=jnp.asarray(objects.valid), **limits)
    drawn = sample(key, assigned, count, count // 2)
    references = boxes[drawn.index]
    # Background is coded as its own anchor: the logarithm of an empty box would be infinite.
    aims = jnp.where(drawn.positive[:, None], object_boxes[assigned[drawn.index]], references)
    return AnchorTargets(drawn.index, box_ops.encode(aims, references), drawn.positive, drawn.valid)


class Proposals(NamedTuple):
    """Boxes that may hold an object, by falling score, padded; without gradient."""

    boxes: Float[jax.Array, "*b k 4"]
    valid: Bool[jax.Array, "*b k"]


def propose(
    objectness: Float[jax.Array, "a"], codes: Float[jax.Array, "a 4"], anchors: Anchors, size: jax.Array, *, per_level: int, count: int
) -> Proposals:
    """The `count` best boxes of one image of `size` (height, width).

    Of each level the `per_level` best anchors are moved by their codes, clipped to the image, and suppressed from an IoU of 0.7.
    """
    objectness, codes = jax.lax.stop_gradient((objectness, codes))
    levels, start = [], 0
    for anchors_of_level in anchors.counts:
        of_level = slice(start, start + anchors_of_level)
        scores, best = jax.lax.top_k(objectness[of_level], min(per_level, anchors_of_level))
        boxes = box_ops.decode(codes[of_level][best], jnp.asarray(anchors.boxes[of_level])[best])
        boxes = box_ops.clip(boxes, size[0], size[1])
        unsuppressed = nms(boxes, scores, SUPPRESSED, valid=box_ops.areas(boxes) > 0)
        levels.append((boxes, jnp.where(unsuppressed, scores, -math.inf)))
        start += anchors_of_level
    boxes, scores = (jnp.concatenate(parts) for parts in zip(*levels, strict=True))
    scores, best = jax.lax.top_k(scores, min(count, scores.shape[0]))
    return Proposals(boxes[best], scores > -math.inf)
