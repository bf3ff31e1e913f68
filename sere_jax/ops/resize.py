"""Resizing of position embeddings, as the PyTorch code of DINO, iBOT and SERE does it.

PyTorch's bicubic interpolation uses the kernel parameter a = -0.75 without antialiasing; `jax.image.resize('cubic')` uses
a = -0.5 and antialiases, which would change the embedding of every local crop.
"""

from __future__ import annotations

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

_A = -0.75


def resize_position_embedding(embedding: Float[jax.Array, "1 n d"], grid: tuple[int, int]) -> Float[jax.Array, "1 m d"]:
    """Resize the patch part of a position embedding [1, 1 + s*s, d] to another patch grid (h, w); the cls slot stays.

    The rule is DINO's: the scale handed to the interpolation is (g + 0.1) / s, so output i reads source coordinate
    (i + 0.5) s / (g + 0.1) - 0.5. A square grid of the stored size is returned unchanged.
    """
    stored = round((embedding.shape[1] - 1) ** 0.5)
    if stored * stored + 1 != embedding.shape[1]:
        raise ValueError(f"position embedding has {embedding.shape[1] - 1} patch slots; expected a square number")
    height, width = grid
    if height == width == stored:
        return embedding
    patches = embedding[0, 1:].reshape(stored, stored, -1)
    resized = jnp.einsum("hs,wt,std->hwd", bicubic_matrix(stored, height), bicubic_matrix(stored, width), patches, precision="highest")
    return jnp.concatenate([embedding[:, :1], resized.reshape(1, height * width, -1).astype(embedding.dtype)], axis=1)


@lru_cache
def bicubic_matrix(source: int, target: int, offset: float = 0.1) -> np.ndarray:
    """The matrix [target, source] of one-dimensional bicubic interpolation (a = -0.75, border repeated, no antialiasing).

    The scale is (target + offset) / source: 0.1 is DINO's rule, 0 the plain ratio.
    """
    matrix = np.zeros((target, source))
    for row in range(target):
        position = (row + 0.5) * source / (target + offset) - 0.5
        first = int(np.floor(position))
        for neighbour in range(first - 1, first + 3):
            matrix[row, min(max(neighbour, 0), source - 1)] += _cubic(abs(position - neighbour))
    return matrix.astype(np.float32)


def _cubic(distance: float) -> float:
    if distance <= 1:
        return (_A + 2) * distance**3 - (_A + 3) * distance**2 + 1
    if distance < 2:
        return _A * (distance**3 - 5 * distance**2 + 8 * distance - 4)
    return 0.0
