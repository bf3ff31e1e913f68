"""Naive statements of cropping and resizing: random-resized-crop, area mean and antialiased bicubic, loop by loop."""

from __future__ import annotations

import math

import numpy as np


def random_resized_crop(height, width, scale, ratio, rng):
    """torchvision's definition with the draws area, ratio, column, row in that order; (left, top, width, height)."""
    for _ in range(10):
        target_area = (scale[0] + rng.random() * (scale[1] - scale[0])) * (height * width)
        aspect = math.exp(math.log(ratio[0]) + rng.random() * (math.log(ratio[1]) - math.log(ratio[0])))
        w = round((target_area * aspect) ** 0.5)
        h = round((target_area / aspect) ** 0.5)
        if w <= width and h <= height and w > 0 and h > 0:
            left = rng.integers(0, width - w, endpoint=True)
            top = rng.integers(0, height - h, endpoint=True)
            return int(left), int(top), w, h
    image_ratio = float(width) / float(height)
    if image_ratio < min(ratio):
        w, h = width, round(width / min(ratio))
    elif image_ratio > max(ratio):
        w, h = round(height * max(ratio)), height
    else:
        w, h = width, height
    return (width - w) // 2, (height - h) // 2, w, h


def area_weights(old, new):
    """[new, old]: output i is the mean of the input over [i, i + 1) * old / new, pixels taken as constant."""
    weights = np.zeros((new, old))
    for i in range(new):
        start, end = i * old / new, (i + 1) * old / new
        for j in range(old):
            weights[i, j] = max(0.0, min(end, j + 1) - max(start, j))
    return weights / weights.sum(1, keepdims=True)


def bicubic_weights(old, new):
    """[new, old]: Keys' cubic with a = -0.5, stretched by old / new when shrinking; taps outside the image are left out."""

    def kernel(x, a=-0.5):
        x = abs(x)
        if x < 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        if x < 2:
            return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
        return 0.0

    stretch = max(1.0, old / new)
    weights = np.zeros((new, old))
    for i in range(new):
        centre = (i + 0.5) * old / new
        for j in range(old):
            weights[i, j] = kernel((j + 0.5 - centre) / stretch)
    return weights / weights.sum(1, keepdims=True)


def resize(image, rows, columns, weights):
    """Both axes of a [H, W, c] image with the same family of weights; float64, unrounded."""
    vertical, horizontal = weights(image.shape[0], rows), weights(image.shape[1], columns)
    return np.einsum("ih,hwc,jw->ijc", vertical, image.astype(np.float64), horizontal)
