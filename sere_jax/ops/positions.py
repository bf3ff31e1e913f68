"""Fixed two-dimensional position embeddings of sines and cosines."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float

First = Literal["rows", "columns"]


def sincos_positions(width: int, grid: tuple[int, int], first: First) -> Float[np.ndarray, "1 n d"]:
    """The table [1, 1 + h w, d] for a patch grid (h, w), tokens row by row; the cls token's row is 0.

    Let omega_i = 10000^(-4 i / d), i < d / 4. A token at row r and column c has the quarters
    [sin(r omega), cos(r omega), sin(c omega), cos(c omega)] with `first="rows"` (MoCo v3's order). With `"columns"` (MAE's order)
    the quarters of the column come first. Raises ValueError where the width is not divisible by 4.
    """
    if width % 4:
        raise ValueError(f"sine and cosine positions: found width {width}, expected a multiple of 4")
    omega = 10000.0 ** -(np.arange(width // 4) / (width // 4))
    row, column = np.meshgrid(*(np.arange(side) for side in grid), indexing="ij")
    order = (row, column) if first == "rows" else (column, row)
    angles = [axis.reshape(-1, 1) * omega for axis in order]
    patches = np.concatenate([wave(angle) for angle in angles for wave in (np.sin, np.cos)], axis=1)
    return np.concatenate([np.zeros((1, width)), patches])[None].astype(np.float32)
