"""The photometric operations by Pillow itself, on one uint8 image [H, W, 3], as torchvision and DINO call it."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    return np.asarray(ImageEnhance.Brightness(Image.fromarray(image)).enhance(factor))


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    return np.asarray(ImageEnhance.Contrast(Image.fromarray(image)).enhance(factor))


def saturation(image: np.ndarray, factor: float) -> np.ndarray:
    return np.asarray(ImageEnhance.Color(Image.fromarray(image)).enhance(factor))


def hue(image: np.ndarray, shift: float) -> np.ndarray:
    planes = np.array(Image.fromarray(image).convert("HSV"))
    planes[..., 0] = (planes[..., 0].astype(int) + int(shift * 255)) % 256
    return np.asarray(Image.fromarray(planes, "HSV").convert("RGB"))


def grey(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).convert("L").convert("RGB"))


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius=sigma)))


def solarize(image: np.ndarray, threshold: int) -> np.ndarray:
    return np.asarray(ImageOps.solarize(Image.fromarray(image), threshold))
