"""Self-relation differences, entry by entry in NumPy float64."""

from __future__ import annotations

import math

import numpy as np


def softmax(row: np.ndarray) -> np.ndarray:
    """Softmax of one row."""
    e = np.exp(row - row.max())
    return e / e.sum()


def spatial(tokens: np.ndarray, temperature: float, heads: int) -> np.ndarray:
    """tokens [p, d] -> relation [m, p, p]."""
    p, d = tokens.shape
    width = d // heads
    out = np.zeros((heads, p, p))
    for m in range(heads):
        part = tokens[:, m * width : (m + 1) * width].astype(np.float64)
        for i in range(p):
            out[m, i] = softmax(np.array([part[i] @ part[j] / math.sqrt(width) / temperature for j in range(p)]))
    return out


def channel(tokens: np.ndarray, temperature: float) -> np.ndarray:
    """tokens [p, d] -> relation [d, d]."""
    p, d = tokens.shape
    tokens = tokens.astype(np.float64)
    return np.stack([softmax(np.array([tokens[:, i] @ tokens[:, j] / p / temperature for j in range(d)])) for i in range(d)])


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over rows of the summed absolute difference."""
    rows = [abs(x - y).sum() for x, y in zip(a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1]), strict=True)]
    return float(np.mean(rows))


def bilinear_border(feature_map: np.ndarray, y: float, x: float) -> np.ndarray:
    """feature_map [h, w, d] at crop coordinates (y, x) in [0, 1], positions clipped to the outermost pixels."""
    h, w, _ = feature_map.shape
    row, column = min(max(y * h - 0.5, 0.0), h - 1.0), min(max(x * w - 0.5, 0.0), w - 1.0)
    top, left = math.floor(row), math.floor(column)
    bottom, right = min(top + 1, h - 1), min(left + 1, w - 1)
    fy, fx = row - top, column - left
    upper = (1 - fx) * feature_map[top, left] + fx * feature_map[top, right]
    lower = (1 - fx) * feature_map[bottom, left] + fx * feature_map[bottom, right]
    return (1 - fy) * upper + fy * lower


def overlap_grid(
    box_a: np.ndarray, flip_a: bool, box_b: np.ndarray, flip_b: bool, size: int, sampling: str = "endpoints"
) -> tuple[list, list]:
    """The (y, x) crop coordinates, in both views, of size x size source points spread over the overlap.

    `endpoints`: the ends of the overlap included; `centers`: on the centres of as many equal cells.
    """
    at = [i / (size - 1) if sampling == "endpoints" else (i + 0.5) / size for i in range(size)]
    left, top = max(box_a[0], box_b[0]), max(box_a[1], box_b[1])
    right, bottom = min(box_a[0] + box_a[2], box_b[0] + box_b[2]), min(box_a[1] + box_a[3], box_b[1] + box_b[3])
    grids = []
    for box, flip in ((box_a, flip_a), (box_b, flip_b)):
        points = []
        for i in range(size):
            for j in range(size):
                sy, sx = top + (bottom - top) * at[i], left + (right - left) * at[j]
                y, x = (sy - box[1]) / box[3], (sx - box[0]) / box[2]
                points.append((y, 1 - x if flip else x))
        grids.append(points)
    return grids[0], grids[1]
