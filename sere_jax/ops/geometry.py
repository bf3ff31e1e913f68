"""Region-aligned sampling: from the boxes of two crops to features of the same source points in both.

A crop is described by its box (left, top, width, height) in source pixels and by whether it was mirrored afterwards.
A point in a view has *crop coordinates* (y, x) in [0, 1]: 0 is the outer edge of the first pixel, 1 that of the last.

Source: TPAMI paper section 3.2 and Fig. 3; the defaults (`endpoints`, `zeros`) are those of the published numbers.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Bool, Float

Sampling = Literal["endpoints", "centers"]
Padding = Literal["zeros", "border"]
SamplingImpl = Literal["map_coordinates", "separable", "auto"]

# Crop coordinate of points of a pair that does not overlap: [-1, 1] coordinate -2, outside of every bilinear footprint.
_OUTSIDE = -0.5


class Points(NamedTuple):
    """An s x s grid of points in one view: the tensor product of its rows `y` and its columns `x` (crop coordinates)."""

    y: Float[jax.Array, "*batch s"]
    x: Float[jax.Array, "*batch s"]
    valid: Bool[jax.Array, "*batch"]  # False where the two crops do not overlap; such samples are all zero


def overlaps(boxes_a: Float[jax.Array, "*batch 4"], boxes_b: Float[jax.Array, "*batch 4"]) -> Bool[jax.Array, "*batch"]:
    """Whether each pair of boxes shares a positive area. Boxes that merely touch do not overlap."""
    offset = boxes_b[..., :2] - boxes_a[..., :2]
    extent_a, extent_b = boxes_a[..., 2:], boxes_b[..., 2:]
    return jnp.all((offset < extent_a) & (-offset < extent_b) & (extent_a > 0) & (extent_b > 0), axis=-1)


def overlap_points(
    boxes_a: Float[jax.Array, "*batch 4"],
    flips_a: Bool[jax.Array, "*batch"],
    boxes_b: Float[jax.Array, "*batch 4"],
    flips_b: Bool[jax.Array, "*batch"],
    *,
    size: int,
    sampling: Sampling = "endpoints",
) -> tuple[Points, Points]:
    """Lay size x size points on the overlap of each pair of crops; return their crop coordinates in both crops.

    `endpoints` spaces the points from one side of the overlap to the other, both included (the authors' code);
    `centers` puts them on the centres of size x size equal cells (the paper's text). Point (i, j) of the first grid and
    point (i, j) of the second are the same source point, whatever the flips.
    """
    valid = overlaps(boxes_a, boxes_b)
    fractions = jnp.linspace(0.0, 1.0, size) if sampling == "endpoints" else (jnp.arange(size) + 0.5) / size

    def points(boxes: jax.Array, flips: jax.Array, others: jax.Array) -> Points:
        x, y = (_crop_coordinates(boxes, others, axis, fractions) for axis in (0, 1))
        x = jnp.where(flips[..., None], 1.0 - x, x)
        return Points(jnp.where(valid[..., None], y, _OUTSIDE), jnp.where(valid[..., None], x, _OUTSIDE), valid)

    return points(boxes_a, flips_a, boxes_b), points(boxes_b, flips_b, boxes_a)


def _crop_coordinates(
    boxes: Float[jax.Array, "*batch 4"], others: Float[jax.Array, "*batch 4"], axis: int, fractions: Float[jax.Array, "s"]
) -> Float[jax.Array, "*batch s"]:
    """Points of the overlap along one axis (0: x, 1: y), in crop coordinates of `boxes` before the flip.

    Everything is relative to the box's own origin. In source pixels a coordinate of 3,000 has a float32 spacing of 2e-4 pixels,
    which the division by a small crop's extent would magnify.
    """
    extent, offset = boxes[..., 2 + axis], others[..., axis] - boxes[..., axis]
    start = jnp.maximum(offset, 0.0)
    end = jnp.minimum(extent, offset + others[..., 2 + axis])
    return (start[..., None] + (end - start)[..., None] * fractions) / extent[..., None]


def sample(
    features: Float[jax.Array, "b h w d"],
    points: Points,
    *,
    padding: Padding = "zeros",
    impl: SamplingImpl = "map_coordinates",
) -> Float[jax.Array, "b p d"]:
    """Sample feature maps bilinearly at a grid of points, row by row (p = s * s), in float32.

    Pixel i of a map of L pixels lies at crop coordinate (i + 0.5) / L, so a point u reads position u L - 0.5
    (`align_corners=False`). With `zeros` the neighbours beyond the border count as 0, so a point on the border of the view
    keeps half its weight and one on a corner a quarter; with `border` the position is clipped to the outermost pixels.
    Points of pairs that do not overlap give zeros. Both implementations are the same function: `map_coordinates` gathers,
    `separable` multiplies with two small matrices, W_y F W_x^T with W = max(0, 1 - |position - i|). `auto` is `separable` in a
    program that is compiled for a CPU, where it costs less, and `map_coordinates` in any other.
    """
    features = features.astype(jnp.float32)
    height, width = features.shape[1:3]
    rows, columns = _positions(points.y, height, padding), _positions(points.x, width, padding)
    gather = jax.vmap(_gather)
    if impl == "auto":
        sampled = jax.lax.platform_dependent(features, rows, columns, cpu=_separable, default=gather)
    else:
        sampled = (_separable if impl == "separable" else gather)(features, rows, columns)
    return sampled * points.valid[:, None, None]


def _separable(features: Float[jax.Array, "b h w d"], rows: Float[jax.Array, "b s"], columns: Float[jax.Array, "b t"]) -> jax.Array:
    _, height, width, channels = features.shape
    sampled = jnp.einsum("bsh,bhwd,btw->bstd", _hat(rows, height), features, _hat(columns, width), precision="highest")
    return sampled.reshape(sampled.shape[0], -1, channels)


def _positions(coordinates: Float[jax.Array, "b s"], length: int, padding: Padding) -> Float[jax.Array, "b s"]:
    positions = coordinates.astype(jnp.float32) * length - 0.5
    return jnp.clip(positions, 0.0, length - 1.0) if padding == "border" else positions


def _hat(positions: Float[jax.Array, "b s"], length: int) -> Float[jax.Array, "b s l"]:
    """Bilinear weights of every pixel for every position. A neighbour beyond the border loses its weight."""
    return jnp.maximum(0.0, 1.0 - jnp.abs(positions[..., None] - jnp.arange(length)))


def _gather(features: Float[jax.Array, "h w d"], rows: Float[jax.Array, "s"], columns: Float[jax.Array, "t"]) -> Float[jax.Array, "p d"]:
    coordinates = [axis.reshape(-1) for axis in jnp.meshgrid(rows, columns, indexing="ij")]
    return jax.vmap(lambda channel: map_coordinates(channel, coordinates, order=1), in_axes=-1, out_axes=-1)(features)
