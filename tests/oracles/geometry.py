"""Overlap points and `grid_sample(align_corners=False)`, point by point in NumPy float64 (SPEC 1.3)."""

from __future__ import annotations

import math

import numpy as np


def overlap_grids(box_a, flip_a, box_b, flip_b, size: int, sampling: str = "endpoints") -> tuple[np.ndarray, np.ndarray]:
    """Two grids [size, size, 2] of (x, y) in [-1, 1], one a view; all -2 where the rectangles share no area."""
    left, top = max(box_a[0], box_b[0]), max(box_a[1], box_b[1])
    right, bottom = min(box_a[0] + box_a[2], box_b[0] + box_b[2]), min(box_a[1] + box_a[3], box_b[1] + box_b[3])
    if right <= left or bottom <= top:
        return np.full((size, size, 2), -2.0), np.full((size, size, 2), -2.0)
    grids = []
    for (x0, y0, w, h), flip in ((box_a, flip_a), (box_b, flip_b)):
        grid = np.zeros((size, size, 2))
        for i in range(size):
            for j in range(size):
                fy, fx = (i / (size - 1), j / (size - 1)) if sampling == "endpoints" else ((i + 0.5) / size, (j + 0.5) / size)
                x = (left + (right - left) * fx - x0) / w
                y = (top + (bottom - top) * fy - y0) / h
                grid[i, j] = 2 * (1 - x if flip else x) - 1, 2 * y - 1
        grids.append(grid)
    return grids[0], grids[1]


def source_pixel(box, flip, x: float, y: float) -> tuple[float, float]:
    """Where in the source image a view's crop coordinate (x, y in [0, 1]) lies."""
    return box[0] + (1 - x if flip else x) * box[2], box[1] + y * box[3]


def grid_sample(feature_map: np.ndarray, grid: np.ndarray, padding: str = "zeros") -> np.ndarray:
    """feature_map [h, w, d], grid [s, t, 2] of (x, y) in [-1, 1] -> [s, t, d]; pixel i is centred at (2 i + 1) / L - 1."""
    height, width, d = feature_map.shape
    out = np.zeros((*grid.shape[:2], d))
    for s in range(grid.shape[0]):
        for t in range(grid.shape[1]):
            column, row = ((grid[s, t, 0] + 1) * width - 1) / 2, ((grid[s, t, 1] + 1) * height - 1) / 2
            if padding == "border":
                column, row = min(max(column, 0), width - 1), min(max(row, 0), height - 1)
            for r in (math.floor(row), math.floor(row) + 1):
                for c in (math.floor(column), math.floor(column) + 1):
                    if 0 <= r < height and 0 <= c < width:
                        out[s, t] += (1 - abs(row - r)) * (1 - abs(column - c)) * feature_map[r, c]
    return out


def interpolation_matrix(height: int, width: int, grid: np.ndarray, padding: str = "zeros") -> np.ndarray:
    """The matrix [s * t, height * width] that `grid_sample` is: column p is the answer to a map that is 1 at p alone."""
    basis = np.eye(height * width).reshape(height, width, height * width)
    return grid_sample(basis, grid, padding).reshape(-1, height * width)
