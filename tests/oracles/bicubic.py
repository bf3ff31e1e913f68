"""torch's `interpolate(mode="bicubic", align_corners=False, scale_factor=...)`, pixel by pixel: Keys' kernel with a = -0.75."""

from __future__ import annotations

import math

import numpy as np


def keys(x: float, a: float = -0.75) -> float:
    """Keys' cubic convolution kernel."""
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def interpolate(image: np.ndarray, size: tuple[int, int], scale_factor: tuple[float, float]) -> np.ndarray:
    """image [h, w, d] -> [*size, d]; output i reads (i + 0.5) / scale_factor - 0.5; the border is repeated; no antialiasing."""
    height, width, d = image.shape
    out = np.zeros((*size, d))
    for i in range(size[0]):
        y = (i + 0.5) / scale_factor[0] - 0.5
        for j in range(size[1]):
            x = (j + 0.5) / scale_factor[1] - 0.5
            for r in range(math.floor(y) - 1, math.floor(y) + 3):
                for c in range(math.floor(x) - 1, math.floor(x) + 3):
                    pixel = image[min(max(r, 0), height - 1), min(max(c, 0), width - 1)]
                    out[i, j] += keys(y - r) * keys(x - c) * pixel
    return out
