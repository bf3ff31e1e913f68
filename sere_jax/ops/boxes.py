"""Boxes of objects: areas, overlaps, the coding of one box relative to another, clipping, mirroring and anchors.

A box is (left, top, right, bottom) in pixels; its width is right - left. Nothing is rounded. (Boxes of crops are (left, top, width,
height) and live in `geometry`.) Sources: Ren et al. 2015, Faster R-CNN, for the coding and the anchors; Rezatofighi et al. 2019, GIoU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

# A side grows by this factor at most when a box is decoded: exp of a wild prediction would overflow.
MAX_GROWTH = 1000 / 16
_TINY = 1e-6


def areas(boxes: Float[jax.Array, "*n 4"]) -> Float[jax.Array, "*n"]:
    """Width times height; 0 for a box whose right or bottom lies before its left or top."""
    sides = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0.0)
    return sides[..., 0] * sides[..., 1]


def intersections(a: Float[jax.Array, "*#n 4"], b: Float[jax.Array, "*#n 4"]) -> Float[jax.Array, "*n"]:
    """Area that two boxes share."""
    corners = jnp.concatenate([jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:])], axis=-1)
    return areas(corners)


def iou(a: Float[jax.Array, "*#n 4"], b: Float[jax.Array, "*#n 4"]) -> Float[jax.Array, "*n"]:
    """Intersection over union of boxes that broadcast against each other; 0 where both are empty.

    All pairs of two sets are `iou(a[:, None], b[None])`.

    >>> iou(jnp.array([[0.0, 0.0, 2.0, 2.0]]), jnp.array([[1.0, 0.0, 3.0, 2.0]])).round(4).tolist()
    [0.33329999446868896]
    """
    shared = intersections(a, b)
    return shared / jnp.maximum(areas(a) + areas(b) - shared, _TINY)


def giou(a: Float[jax.Array, "*#n 4"], b: Float[jax.Array, "*#n 4"]) -> Float[jax.Array, "*n"]:
    """IoU - (enclosing area - union) / enclosing area, in (-1, 1]: unlike the IoU it has a gradient where boxes are apart."""
    shared = intersections(a, b)
    union = areas(a) + areas(b) - shared
    enclosing = areas(jnp.concatenate([jnp.minimum(a[..., :2], b[..., :2]), jnp.maximum(a[..., 2:], b[..., 2:])], axis=-1))
    return shared / jnp.maximum(union, _TINY) - (enclosing - union) / jnp.maximum(enclosing, _TINY)


def encode(
    boxes: Float[jax.Array, "*#n 4"], references: Float[jax.Array, "*#n 4"], deviations: Sequence[float] = (1.0, 1.0, 1.0, 1.0)
) -> Float[jax.Array, "*n 4"]:
    """Boxes relative to references: shifts of the centre in sides of the reference, and logarithms of the sides' ratios.

    (dx, dy, dw, dh) = ((x - x_r) / w_r, (y - y_r) / h_r, log(w / w_r), log(h / h_r)) / deviations. Both need sides above 0.
    """
    centres, sides = _centres(boxes)
    reference_centres, reference_sides = _centres(references)
    codes = jnp.concatenate([(centres - reference_centres) / reference_sides, jnp.log(sides / reference_sides)], axis=-1)
    return codes / jnp.asarray(deviations, codes.dtype)


def decode(
    codes: Float[jax.Array, "*#n 4"], references: Float[jax.Array, "*#n 4"], deviations: Sequence[float] = (1.0, 1.0, 1.0, 1.0)
) -> Float[jax.Array, "*n 4"]:
    """The inverse of `encode`. A side's logarithm is clipped to +-log(`MAX_GROWTH`)."""
    codes = codes * jnp.asarray(deviations, codes.dtype)
    reference_centres, reference_sides = _centres(references)
    centres = codes[..., :2] * reference_sides + reference_centres
    sides = reference_sides * jnp.exp(jnp.clip(codes[..., 2:], -math.log(MAX_GROWTH), math.log(MAX_GROWTH)))
    return jnp.concatenate([centres - 0.5 * sides, centres + 0.5 * sides], axis=-1)


def clip(boxes: Float[jax.Array, "*n 4"], height: jax.typing.ArrayLike, width: jax.typing.ArrayLike) -> Float[jax.Array, "*n 4"]:
    """The part of each box inside an image; `height` and `width` may be arrays that broadcast against the leading axes."""
    limits = jnp.stack(jnp.broadcast_arrays(*(jnp.asarray(side, boxes.dtype) for side in (width, height, width, height))), axis=-1)
    return jnp.clip(boxes, 0.0, limits)


def mirror(boxes: Float[jax.Array, "*n 4"], width: jax.typing.ArrayLike) -> Float[jax.Array, "*n 4"]:
    """Boxes after the image, `width` pixels wide, was mirrored left to right."""
    left, top, right, bottom = (boxes[..., i] for i in range(4))
    return jnp.stack([width - right, top, width - left, bottom], axis=-1)


def anchors(
    rows: int, columns: int, stride: int, size: float, ratios: Sequence[float] = (0.5, 1.0, 2.0)
) -> Float[np.ndarray, "rows columns ratios 4"]:
    """Anchors of one level: centred at (stride column, stride row), without half a cell, of area size^2, height / width = ratio.

    >>> anchors(1, 1, stride=4, size=32.0, ratios=(1.0,)).reshape(-1).tolist()
    [-16.0, -16.0, 16.0, 16.0]
    """
    roots = np.sqrt(np.asarray(ratios, np.float32))
    halves = 0.5 * size * np.stack([1 / roots, roots], axis=-1)
    x, y = np.meshgrid(np.arange(columns, dtype=np.float32) * stride, np.arange(rows, dtype=np.float32) * stride)
    centres = np.stack([x, y], axis=-1)[:, :, None]
    return np.concatenate([centres - halves, centres + halves], axis=-1).astype(np.float32)


def _centres(boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Centres and sides, each (x, y)."""
    return 0.5 * (boxes[..., :2] + boxes[..., 2:]), boxes[..., 2:] - boxes[..., :2]
