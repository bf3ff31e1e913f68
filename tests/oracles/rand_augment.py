"""RandAugment's operations in NumPy on images [H, W, 3] of 8-bit levels, at signed magnitudes (SPEC 2.1)."""

from __future__ import annotations

import math

import numpy as np


def autocontrast(image: np.ndarray) -> np.ndarray:
    planes = []
    for plane in np.moveaxis(image.astype(np.float64), -1, 0):
        low, high = plane.min(), plane.max()
        planes.append(plane if high <= low else (plane - low) * 255 / (high - low))
    return np.stack(planes, -1)


def equalize(image: np.ndarray) -> np.ndarray:
    """Level i becomes the images' pixels below i, in steps of the 255th part of all that are not of the highest level."""
    planes = []
    for plane in np.moveaxis(image, -1, 0):
        counts = np.bincount(plane.ravel(), minlength=256)
        step = (plane.size - counts[plane.max()]) // 255
        table = np.arange(256) if not step else np.clip((step // 2 + np.concatenate([[0], np.cumsum(counts)[:-1]])) // step, 0, 255)
        planes.append(table[plane])
    return np.stack(planes, -1)


def grey(image: np.ndarray) -> np.ndarray:
    return np.round(image.astype(np.float64) @ [0.299, 0.587, 0.114])[..., None]


def blend(degenerate: np.ndarray | float, image: np.ndarray, magnitude: float) -> np.ndarray:
    factor = 1 + 0.09 * magnitude
    return np.clip(degenerate * (1 - factor) + image * factor, 0, 255)


def smooth(image: np.ndarray) -> np.ndarray:
    """Weights 1 around 5, over 13; the border stays."""
    inner = image.astype(np.float64)
    out, (height, width) = inner.copy(), image.shape[:2]
    total = sum(inner[1 + i : height - 1 + i, 1 + j : width - 1 + j] for i in (-1, 0, 1) for j in (-1, 0, 1))
    out[1:-1, 1:-1] = (total + 4 * inner[1:-1, 1:-1]) / 13
    return out


def affine(image: np.ndarray, matrix: tuple[float, ...], fill: tuple[int, ...]) -> np.ndarray:
    """Pixel centres (x, y) + 1/2 come from M (x, y, 1); cubic interpolation with a = -1, edges repeated, `fill` from outside."""
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width] + 0.5
    a, b, c, d, e, f = matrix
    across, down = a * x + b * y + c, d * x + e * y + f
    outside = (across < 0) | (across >= width) | (down < 0) | (down >= height)

    def weights(t: np.ndarray) -> list[np.ndarray]:
        def kernel(s: np.ndarray) -> np.ndarray:
            s = np.abs(s)
            return np.where(s < 1, s**3 - 2 * s**2 + 1, np.where(s < 2, -(s**3) + 5 * s**2 - 8 * s + 4, 0))

        return [kernel(t - offset) for offset in (-1, 0, 1, 2)]

    left, top = np.floor(across - 0.5), np.floor(down - 0.5)
    total = np.zeros(image.shape)
    for i, row_weight in zip((-1, 0, 1, 2), weights(down - 0.5 - top), strict=True):
        for j, column_weight in zip((-1, 0, 1, 2), weights(across - 0.5 - left), strict=True):
            rows, columns = np.clip(top + i, 0, height - 1).astype(int), np.clip(left + j, 0, width - 1).astype(int)
            total += (row_weight * column_weight)[..., None] * image[rows, columns]
    return np.where(outside[..., None], np.array(fill), np.clip(total, 0, 255))


def rotate(image: np.ndarray, magnitude: float, fill: tuple[int, ...]) -> np.ndarray:
    """Counter-clockwise by 3 degrees a unit, about the centre."""
    height, width = image.shape[:2]
    angle = math.radians(3 * magnitude)
    cos, sin = math.cos(angle), math.sin(angle)
    matrix = (cos, -sin, width / 2 - cos * width / 2 + sin * height / 2, sin, cos, height / 2 - sin * width / 2 - cos * height / 2)
    return affine(image, matrix, fill)


def apply(name: str, image: np.ndarray, magnitude: float, fill: tuple[int, ...]) -> np.ndarray:
    """The operation in float64; Pillow rounds or cuts to whole levels."""
    height, width = image.shape[:2]
    if name in ("autocontrast", "equalize"):
        return {"autocontrast": autocontrast, "equalize": equalize}[name](image)
    if name == "invert":
        return 255.0 - image
    if name == "posterize":
        step = 2 ** (8 - (4 - int(magnitude / 10 * 4)))
        return image // step * step if step < 256 else np.zeros_like(image)
    if name == "solarize":
        return np.where(image >= 256 - int(magnitude / 10 * 256), 255 - image, image)
    if name == "solarize_add":
        return np.where(image < 128, np.minimum(255, image.astype(int) + min(128, int(magnitude / 10 * 110))), image)
    if name == "rotate":
        return rotate(image, magnitude, fill)
    if name in ("color", "contrast", "brightness", "sharpness"):
        degenerate = {"color": grey(image), "contrast": np.floor(grey(image).mean() + 0.5), "brightness": 0.0, "sharpness": smooth(image)}
        return blend(degenerate[name], image, magnitude)
    matrices = {
        "shear_x": (1, 0.3 * magnitude / 10, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, 0.3 * magnitude / 10, 1, 0),
        "translate_x": (1, 0, 0.45 * magnitude / 10 * width, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, 0.45 * magnitude / 10 * height),
    }
    return affine(image, matrices[name], fill)
