"""The heads of Cascade Mask R-CNN, the regions they are trained on, and the choice of detections.

Three stages ask for ever better boxes: each is trained on the boxes that the stage before it moved. Sources: Cai and Vasconcelos 2018;
He et al. 2017; iBOT's config of MMDetection 2. Boxes are (left, top, right, bottom) in pixels of the padded image.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Key

from sere_jax.models.dense.rpn import Proposals
from sere_jax.models.dense.upernet import ConvNorm, Doubling
from sere_jax.ops.matching import mask_targets, match, sample
from sere_jax.ops.nms import nms
from sere_jax.types import Detections, Objects

BOX_SIDE, MASK_SIDE = 7, 14  # cells of a region that the heads of boxes and masks see; a mask has twice as many
MASK_SHARE = 4  # one in so many sampled regions may hold an object, and has a mask
LEAST_SCORE, SUPPRESSED = 0.05, 0.5
_HE = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Stage(NamedTuple):
    """One stage of the cascade."""

    positive: float  # IoU with an object from which a region stands for it
    deviations: tuple[float, float, float, float]  # of the codes of boxes
    weight: float  # of all of its losses


STAGES = (
    Stage(0.5, (0.1, 0.1, 0.2, 0.2), 1.0),
    Stage(0.6, (0.05, 0.05, 0.1, 0.1), 0.5),
    Stage(0.7, (0.033, 0.033, 0.067, 0.067), 0.25),
)


class BoxAnswer(NamedTuple):
    """What a stage says of regions."""

    logits: Float[jax.Array, "b k c"]  # of the classes and, last, the background
    codes: Float[jax.Array, "b k f 4"]  # for each class, relative to the region


class BoxHead(nn.Module):
    """Features of regions -> `BoxAnswer`: four 3 x 3 convolutions with BatchNorm, one hidden layer, two linear layers."""

    classes: int
    channels: int = 256
    hidden: int = 1024
    running: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[jax.Array, "b k s s d"]) -> BoxAnswer:
        leading, x = x.shape[:2], x.reshape(-1, *x.shape[2:]).astype(self.dtype)
        for i in range(4):
            x = ConvNorm(self.channels, 3, self.running, self.dtype, name=f"conv_{i}")(x)
        fc = nn.Dense(self.hidden, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform(), name="fc")
        x = nn.relu(fc(x.reshape(x.shape[0], -1))).astype(jnp.float32)
        logits = nn.Dense(self.classes + 1, kernel_init=nn.initializers.normal(0.01), name="classifier")(x)
        codes = nn.Dense(4 * self.classes, kernel_init=nn.initializers.normal(0.001), name="codes")(x)
        return BoxAnswer(logits.reshape(*leading, -1), codes.reshape(*leading, self.classes, 4))


class MaskHead(nn.Module):
    """Features of regions -> logits of twice as many cells for each class: four 3 x 3 convolutions, a transposed one, a linear layer."""

    classes: int
    channels: int = 256
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[jax.Array, "b k s s d"]) -> Float[jax.Array, "b k t t f"]:
        leading, x = x.shape[:2], x.reshape(-1, *x.shape[2:]).astype(self.dtype)
        for i in range(4):
            x = nn.relu(nn.Conv(self.channels, (3, 3), dtype=self.dtype, kernel_init=_HE, name=f"conv_{i}")(x))
        up = Doubling(self.channels, self.dtype, kernel_init=_HE, name="up")
        logits = nn.Dense(self.classes, kernel_init=_HE, name="classifier")(nn.relu(up(x)).astype(jnp.float32))
        return logits.reshape(*leading, *logits.shape[1:])


class Regions(NamedTuple):
    """Boxes that a stage is trained on: those that stand for an object first. Rows that are not `valid` repeat the others."""

    boxes: Float[jax.Array, "*b k 4"]
    labels: Int[jax.Array, "*b k"]  # the number of classes: background
    targets: Float[jax.Array, "*b k 4"]  # the object's box; the region itself where there is none
    object: Int[jax.Array, "*b k"]  # its number; 0 where there is none
    positive: Bool[jax.Array, "*b k"]
    added: Bool[jax.Array, "*b k"]  # the box of an object itself, which no stage before has moved
    valid: Bool[jax.Array, "*b k"]


def sample_regions(
    key: Key[jax.Array, ""], proposals: Proposals, objects: Objects, *, positive: float, classes: int, count: int
) -> Regions:
    """Sample `count` boxes of one image among the proposals and the objects' own boxes, at most a quarter of them positive.

    A box stands for the object that it overlaps most, from an IoU of `positive`; all others are background.
    """
    object_boxes, valid_objects = jnp.asarray(objects.boxes), jnp.asarray(objects.valid)
    boxes = jnp.concatenate([object_boxes, proposals.boxes])
    valid = jnp.concatenate([valid_objects, proposals.valid])
    assigned = match(boxes, object_boxes, valid_boxes=valid, valid_objects=valid_objects, positive=positive, negative=positive)
    drawn = sample(key, assigned, count, count // MASK_SHARE)
    boxes, number = boxes[drawn.index], jnp.where(drawn.positive, assigned[drawn.index], 0)
    return Regions(
        boxes,
        jnp.where(drawn.positive, jnp.asarray(objects.labels)[number], classes),
        jnp.where(drawn.positive[:, None], object_boxes[number], boxes),
        number,
        drawn.positive,
        drawn.index < object_boxes.shape[0],
        drawn.valid,
    )


def region_masks(regions: Regions, objects: Objects, size: int) -> Bool[jax.Array, "p s s"]:
    """The objects' masks in those regions of one image that may stand for one: the first `1 / MASK_SHARE` of them."""
    first = regions.boxes.shape[0] // MASK_SHARE
    number = regions.object[:first]
    return mask_targets(jnp.asarray(objects.masks)[number], jnp.asarray(objects.boxes)[number], regions.boxes[:first], size)


def choose_detections(
    probabilities: Float[jax.Array, "n f"], boxes: Float[jax.Array, "n f 4"], valid: Bool[jax.Array, "n"], count: int
) -> Detections:
    """The `count` best boxes of one image after suppression from an IoU of 0.5 within each class; scores above 0.05."""

    def of_class(scores_and_boxes: tuple[jax.Array, jax.Array]) -> jax.Array:
        scores, boxes = scores_and_boxes
        unsuppressed = nms(boxes, scores, SUPPRESSED, valid=valid & (scores > LEAST_SCORE))
        return jnp.where(unsuppressed, scores, -math.inf)

    # A class at a time: every pair of boxes of every class at once would be 80 million overlaps.
    of_classes = jax.lax.map(of_class, (probabilities.T, jnp.swapaxes(boxes, 0, 1)), batch_size=min(8, probabilities.shape[1]))
    scores, best = jax.lax.top_k(of_classes.ravel(), min(count, of_classes.size))
    labels, number = jnp.divmod(best, boxes.shape[0])
    is_detection = scores > -math.inf
    return Detections(
        jnp.where(is_detection[:, None], boxes[number, labels], 0.0),
        jnp.where(is_detection, scores, 0.0),
        jnp.where(is_detection, labels, 0),
        is_detection,
    )
