"""Maps in other sizes: PyTorch's bilinear interpolation and adaptive mean, as products with fixed matrices."""

from __future__ import annotations

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float


def resize_bilinear(maps: Float[jax.Array, "b h w d"], shape: tuple[int, int]) -> Float[jax.Array, "b H W d"]:
    """Bilinear interpolation to `shape` in float32, as PyTorch's `interpolate` without `align_corners`: no antialiasing.

    >>> resize_bilinear(jnp.array([0.0, 1.0]).reshape(1, 1, 2, 1), (1, 4)).ravel().tolist()
    [0.0, 0.25, 0.75, 1.0]
    """
    if maps.shape[1:3] == shape:
        return maps.astype(jnp.float32)
    return jax.image.resize(maps.astype(jnp.float32), (maps.shape[0], *shape, maps.shape[3]), "bilinear", antialias=False)


def adaptive_mean(maps: Float[jax.Array, "b h w d"], side: int) -> Float[jax.Array, "b s s d"]:
    """Means over side x side cells that cover the map, as PyTorch's AdaptiveAvgPool2d: neighbouring cells may share a row.

    >>> adaptive_mean(jnp.arange(3.0).reshape(1, 1, 3, 1), 2)[0, 0, :, 0].tolist()
    [0.5, 1.5]
    """
    rows, columns = (adaptive_matrix(length, side) for length in maps.shape[1:3])
    return jnp.einsum("sh,tw,bhwd->bstd", rows, columns, maps.astype(jnp.float32), precision="highest")


@lru_cache
def adaptive_matrix(length: int, cells: int) -> np.ndarray:
    """The matrix [cells, length] of means: cell i covers floor(i length / cells) to ceil((i + 1) length / cells).

    >>> adaptive_matrix(3, 2).tolist()
    [[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]]
    """
    matrix = np.zeros((cells, length), np.float32)
    for cell in range(cells):
        first, last = cell * length // cells, -(-(cell + 1) * length // cells)
        matrix[cell, first:last] = 1 / (last - first)
    return matrix
