"""RoIAlign: features of boxes on a fixed grid, as two matrix products. Source: He et al. 2017, Mask R-CNN, in its aligned form."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from sere_jax.ops.boxes import areas

FINEST = 56  # the side in pixels from which a box belongs to the second level; below it to the first


def roi_align(features: Float[jax.Array, "h w d"], boxes: Float[jax.Array, "n 4"], size: int, stride: float) -> Float[jax.Array, "n s s d"]:
    """The mean of bilinear samples in each of size x size bins of every box. No gradient reaches the boxes.

    `boxes` are in pixels of the image, `stride` is the pixels of a cell; the centre of cell (i, j) is the pixel position
    ((j + 1/2) stride, (i + 1/2) stride). A bin has ceil(side / size) samples along an axis, `side` being the box's in cells. Samples more
    than a cell outside the map count as 0, others are moved to its edge. The samples of a box form a grid, so the mean
    separates into one matrix for rows and one for columns.
    """
    height, width, _ = features.shape
    cells = jax.lax.stop_gradient(boxes) / stride - 0.5
    rows = sampling_weights(cells[:, 1], cells[:, 3], size, height)
    columns = sampling_weights(cells[:, 0], cells[:, 2], size, width)
    features = features.astype(jnp.float32)
    return jnp.einsum("nph,nqw,hwd->npqd", rows, columns, features, precision="highest", optimize=[(0, 2), (0, 1)])


def sampling_weights(starts: Float[jax.Array, "n"], ends: Float[jax.Array, "n"], size: int, length: int) -> Float[jax.Array, "n s l"]:
    """The weight of each of `length` cells in each of `size` bins between `starts` and `ends`, in cells; rows sum to 1 inside the map."""
    sides = ends - starts
    counts = jnp.maximum(jnp.ceil(sides / size), 0.0)
    bins = starts[:, None] + jnp.arange(size) * (sides / size)[:, None]

    def add_sample(k: jax.Array, total: jax.Array) -> jax.Array:
        positions = bins + ((k + 0.5) * (sides / size) / jnp.maximum(counts, 1.0))[:, None]
        inside = (positions >= -1.0) & (positions <= length) & (k < counts)[:, None]
        distances = jnp.abs(jnp.clip(positions, 0.0, length - 1.0)[..., None] - jnp.arange(length))
        return total + jnp.where(inside[..., None], jnp.maximum(1.0 - distances, 0.0), 0.0)

    total = jax.lax.fori_loop(0, jnp.max(counts, initial=0).astype(jnp.int32), add_sample, jnp.zeros((*starts.shape, size, length)))
    return total / jnp.maximum(counts, 1.0)[:, None, None]


def level_of(boxes: Float[jax.Array, "*n 4"], levels: int) -> Int[jax.Array, "*n"]:
    """The pyramid level of each box by its size: floor(log2(sqrt(area) / 56)), between 0 and levels - 1."""
    sides = jnp.sqrt(areas(boxes))
    return jnp.clip(jnp.floor(jnp.log2(sides / FINEST + 1e-6)), 0, levels - 1).astype(jnp.int32)


def roi_align_pyramid(
    levels: Sequence[Float[jax.Array, "_ _ d"]], strides: Sequence[float], boxes: Float[jax.Array, "n 4"], size: int
) -> Float[jax.Array, "n s s d"]:
    """`roi_align` of each box on the level that its size asks for."""
    level = level_of(boxes, len(levels))
    aligned = jnp.zeros((boxes.shape[0], size, size, levels[0].shape[-1]))
    for i, (features, stride) in enumerate(zip(levels, strides, strict=True)):
        here = level == i
        # Boxes of other levels become empty: they take no samples here.
        on_level = jnp.where(here[:, None], boxes, 0.0)
        aligned = jnp.where(here[:, None, None, None], roi_align(features, on_level, size, stride), aligned)
    return aligned
