"""Logits of a whole image from windows that slide over it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, UInt8

from sere_jax.evals.network import EvalError

# uint8 images [n, H, W, c] -> logits [n, h, w, k] on their own grid, or on the pixels
OfImages = Callable[[UInt8[np.ndarray, "n H W c"]], Float[np.ndarray, "n h w k"]]


def starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along a side: every `stride` pixels, the last one at the end of the side.

    >>> starts(10, 4, 3), starts(11, 4, 3), starts(3, 4, 3)
    ([0, 3, 6], [0, 3, 6, 7], [0])
    """
    last = max(length - window, 0)
    return [*range(0, last, stride), last]


def slide(
    image: UInt8[np.ndarray, "H W c"], of_windows: OfImages, *, window: int, stride: int, fill: tuple[int, ...], batch: int = 1
) -> Float[np.ndarray, "H W k"]:
    """The mean of the logits of all windows that see a pixel, before any softmax.

    `of_windows` answers with the logits of every pixel of `batch` windows, so that it is compiled once. An image smaller than the window
    is filled up with `fill` at its right and lower edge. Raises EvalError where the windows leave gaps.
    """
    if stride > window:
        raise EvalError(f"stride: found {stride}, expected at most the window's {window} pixels")
    height, width = image.shape[:2]
    padded = np.empty((max(height, window), max(width, window), image.shape[2]), np.uint8)
    padded[...] = fill
    padded[:height, :width] = image
    corners = [(top, left) for top in starts(height, window, stride) for left in starts(width, window, stride)]
    total: np.ndarray | None = None
    count = np.zeros((*padded.shape[:2], 1), np.float32)
    for first in range(0, len(corners), batch):
        part = corners[first : first + batch]
        crops = np.zeros((batch, window, window, image.shape[2]), np.uint8)
        for row, (top, left) in enumerate(part):
            crops[row] = padded[top : top + window, left : left + window]
        logits = of_windows(crops)
        if total is None:
            total = np.zeros((*padded.shape[:2], logits.shape[-1]), np.float32)
        for row, (top, left) in enumerate(part):
            total[top : top + window, left : left + window] += logits[row]
            count[top : top + window, left : left + window] += 1
    assert total is not None  # there is at least one window
    return (total / count)[:height, :width]
