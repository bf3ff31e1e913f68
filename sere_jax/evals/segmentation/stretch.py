"""From the logits of a grid to the class of every pixel of an image in its own size."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Float, Int

_CHUNK = 16  # classes that are stretched at a time


def stretched(logits: Float[np.ndarray, "h w c"], shape: tuple[int, int]) -> Float[np.ndarray, "H W c"]:
    """The logits after bilinear interpolation to `shape` (height, width), as `stretched_classes` has it.

    >>> stretched(np.eye(2)[None], (1, 4))[0, :, 1].tolist()
    [0.0, 0.25, 0.75, 1.0]
    """
    return np.concatenate([_resized(logits[..., first : first + _CHUNK], shape) for first in range(0, logits.shape[2], _CHUNK)], axis=2)


def stretched_classes(logits: Float[np.ndarray, "h w c"], shape: tuple[int, int]) -> Int[np.ndarray, "H W"]:
    """The class with the largest logit at every pixel, after bilinear interpolation of the logits to `shape` (height, width).

    Interpolation is PyTorch's without `align_corners` and antialiasing. Of equal logits the lower class is taken. Classes are stretched a
    few at a time, so that memory is needed for the image and not for the image times the classes.

    >>> stretched_classes(np.eye(2)[None], (2, 4)).tolist()
    [[0, 0, 1, 1], [0, 0, 1, 1]]
    """
    best = np.full(shape, -np.inf, np.float32)
    classes = np.zeros(shape, np.int32)
    for first in range(0, logits.shape[2], _CHUNK):
        large = _resized(logits[..., first : first + _CHUNK], shape)
        for offset in range(large.shape[2]):
            better = large[..., offset] > best
            best = np.where(better, large[..., offset], best)
            classes[better] = first + offset
    return classes


def stretched_to_limit(logits: Float[np.ndarray, "h w c"], shape: tuple[int, int], most: int = 10**6) -> Int[np.ndarray, "H W"]:
    """As `stretched_classes`; of a larger image than `most` pixels at a long side of 1000, then by the nearest pixel (ImageNet-S)."""
    height, width = shape
    if height * width <= most:
        return stretched_classes(logits, shape)
    longer = max(shape)
    smaller = max(1, int(1000 * height / longer)), max(1, int(1000 * width / longer))
    classes = stretched_classes(logits, smaller)
    rows, columns = (np.arange(new) * old // new for old, new in zip(smaller, shape, strict=True))
    return classes[np.ix_(rows, columns)]


def _resized(logits: Float[np.ndarray, "h w c"], shape: tuple[int, int]) -> Float[np.ndarray, "H W c"]:
    large = cv2.resize(np.ascontiguousarray(logits, np.float32), shape[::-1], interpolation=cv2.INTER_LINEAR)
    return np.asarray(large).reshape(*shape, -1)
