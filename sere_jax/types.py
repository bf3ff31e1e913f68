"""The data that flows through the system: `Views` -> `Features` -> `Outputs` -> loss and `Metrics`.

Array axes, here and in every einsum of the project: b batch, v views, h w patch grid, n tokens, d width,
k prototypes, m relation heads, c image channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

Array = jax.Array | np.ndarray
PyTree = Any
Metrics = dict[str, jax.Array]
Schedule = Callable[[jax.Array], jax.Array]  # step -> value


class Views(NamedTuple):
    """A batch of augmented views with the geometry that made them. Global crops come first wherever views share an axis.

    `boxes` are (left, top, width, height) of the crop in source pixels, before the flip; `flips` says whether the
    view was mirrored left to right afterwards. With no local crops `local_views` has v = 0.
    """

    global_views: UInt8[Array, "b v H W c"]
    local_views: UInt8[Array, "b l S T c"]
    boxes: Float[Array, "b n 4"]
    flips: Bool[Array, "b n"]
    index: Int[Array, "b"]  # type: ignore[assignment]  # hides tuple.index; which example of the source was used (after replacement of an unreadable one)
    replaced: Bool[Array, "b"]  # True where an unreadable example was replaced by another
    masks: Bool[Array, "b v h w"] | None = None  # masked image modelling: True = the patch is hidden from the student
    mask_indices: Int[Array, "b v cap"] | None = None  # flat positions of the hidden patches, padded with -1


class Features(NamedTuple):
    """What a backbone makes of images. A ViT's tokens; a ResNet's pooled map as `cls` and its last map as patches."""

    cls: Float[Array, "b d"]  # after the final norm
    patches: Float[Array, "b h w d"]  # after the final norm
    patches_prenorm: Float[Array, "b h w d"]  # before it
    layers: tuple[Float[Array, "b n d"], ...] = ()  # tokens (cls first) after the requested blocks, by default before the final norm
    attention: Float[Array, "b m n n"] | None = None  # the last block's softmax attention, on request
    maps: tuple[Float[Array, "b _ _ _"], ...] = ()  # a ResNet's maps after every stage, on request


class Objects(NamedTuple):
    """The objects of images, padded to n; rows that are not `valid` hold zeros. Crowd regions are not among them.

    Boxes are (left, top, right, bottom) in pixels of the padded image. A mask is drawn on a grid of m x m cells over its own box,
    so its size does not depend on the image's: cell (i, j) is True where the object covers the point at
    ((j + 1/2) / m, (i + 1/2) / m) of the box's (width, height). The axis b is absent for one image.
    """

    boxes: Float[Array, "*b n 4"]
    labels: Int[Array, "*b n"]  # from 0; a detector's background is the number after the last class
    valid: Bool[Array, "*b n"]
    masks: Bool[Array, "*b n m m"] | None = None  # None where the data have boxes alone


class DetectionBatch(NamedTuple):
    """Images of several sizes in one array, each in the left upper corner; the rest is padding."""

    images: UInt8[Array, "b H W c"]  # the padding's values do not matter: it is set to the mean colour on the device
    sizes: Int[Array, "b 2"]  # (height, width) of each image without its padding
    objects: Objects
    index: Int[Array, "b"]  # type: ignore[assignment]  # hides tuple.index; which example of the source
    replaced: Bool[Array, "b"] | None = None  # True where an unreadable example was replaced by another


class Detections(NamedTuple):
    """What a detector answers for each image, by falling score, padded to n; rows that are not `valid` hold zeros.

    Boxes are in pixels of the padded image, clipped to the image without its padding. `masks` are probabilities on a grid of m x m cells
    over the box, as in `Objects`; pasted into the image, the object is where they reach one half.
    """

    boxes: Float[Array, "*b n 4"]
    scores: Float[Array, "*b n"]
    labels: Int[Array, "*b n"]
    valid: Bool[Array, "*b n"]
    masks: Float[Array, "*b n m m"] | None = None


# Cells along a side of `Objects.masks`: four times the side of a detector's mask, in a box of median size finer than the pixels.
MASK_SIDE = 112


class Request(NamedTuple):
    """One thing a method wants from the network, static and hashable; it is also the key of the answer in `Outputs`.

    `head` names a head of the network, or is "" for the tokens themselves. `views` chooses the crops, `tokens` what
    is fed to the head, `norm` whether that is taken after ("post") or before ("pre") the final LayerNorm, `side`
    which network answers.

    `tokens`: `cls`; `patches` [b, v, h, w, d]; `masked`, those at `Views.mask_indices` [b, v, cap, d] (padding holds the first
    patch, for the loss to leave out); `aligned`, the two global crops' features at the points of their overlap [b, 2, p, d].
    `visible` leaves the hidden patches out of the backbone altogether and feeds the head `VisibleTokens`; `pixels`, without a
    head, answers with the normalised crops themselves [b, v, H, W, c].
    The student sees its global crops with `Views.masks`, where a method has masks; `whole` asks for the crops without.
    """

    head: str
    views: Literal["global", "local"]
    tokens: Literal["cls", "patches", "masked", "aligned", "visible", "pixels"]
    norm: Literal["post", "pre"]
    side: Literal["student", "teacher"]
    whole: bool = False


class VisibleTokens(NamedTuple):
    """What a backbone makes of the patches that are not hidden, and where they belong."""

    cls: Float[Array, "b v d"]
    patches: Float[Array, "b v k d"]  # in any order
    restore: Int[Array, "b v n"]  # for each place of the grid, row by row, its number among the k visible and then the n - k hidden patches


class PrototypeOutput(NamedTuple):
    """What a prototype head answers. The loss makes the logits `bottleneck @ prototypes.T`, so that it can chunk them.

    On several devices the student's prototypes have an axis in front: r copies, one for each device's share of the batch's rows.
    """

    bottleneck: Float[Array, "*tokens e"]  # L2-normalised, float32
    prototypes: Float[Array, "*r k e"]  # weight-normalised rows, float32


Outputs = dict[Request, Any]  # Request -> PrototypeOutput, or the features of a relation head [b, v, h, w, d]


class Objective(NamedTuple):
    """The contract of a pre-training method: what it asks of the networks, how its state starts, what it makes of the answers.

    `apply(outputs, views, state, step) -> (loss, statistics, metrics)` looks at one micro-batch and does not move the state.
    `update(state, statistics) -> state` moves it, once a window of accumulation. Its statistics are those of `apply`, averaged over
    the window's micro-batches, which all have the same size. A ratio is therefore returned as its numerator and denominator.
    The step stops the gradient of the teacher's outputs, so no loss needs to. `references` gives the values of metrics when nothing has
    been learned.
    """

    requests: tuple[Request, ...]
    init: Callable[[], PyTree]
    apply: Callable[[Outputs, Views, PyTree, jax.Array], tuple[jax.Array, PyTree, Metrics]]
    update: Callable[[PyTree, PyTree], PyTree]
    references: Mapping[str, float]
