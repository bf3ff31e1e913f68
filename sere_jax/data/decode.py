"""The only place of the project that opens an image: encoded bytes -> uint8 RGB pixels.

Pixels are returned as they are stored. An EXIF orientation tag is ignored by both backends: crop boxes are in stored
pixels, and a decoder that turned some images (as `cv2.imread` does) would make boxes and label maps disagree with them.
Colour profiles and gamma chunks are ignored as well. Transparency is dropped, as `PIL.Image.convert("RGB")` does; of an
animation the first frame is used; 16-bit samples are scaled to 8 bits.
"""

from __future__ import annotations

import io
import warnings
from typing import Literal

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image

Backend = Literal["fast", "pil"]
BACKENDS: tuple[Backend, ...] = ("fast", "pil")
MAX_PIXELS = 50_000_000


class BadImage(ValueError):
    """Bytes that cannot be made into pixels: no image, damaged, cut short, or larger than the cap."""


def decode(data: bytes, *, backend: Backend = "fast", max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "H W 3"]:
    """The pixels of one encoded image, RGB.

    `backend="fast"` reads JPEG with libjpeg-turbo (bit-identical to Pillow's at half the time) and the rest with Pillow;
    `"pil"` reads everything with Pillow. The header's size is checked against `max_pixels` before anything is decoded, so
    that a small file cannot claim gigabytes. Raises BadImage.
    """
    if backend == "fast" and data[:2] == b"\xff\xd8":
        return _decode_jpeg(data, max_pixels)
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}, expected one of {', '.join(BACKENDS)}")
    return _decode_pillow(data, max_pixels)


def _decode_jpeg(data: bytes, max_pixels: int) -> np.ndarray:
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        _check_size(height, width, max_pixels)
        if colours in ("CMYK", "YCCK"):  # libjpeg-turbo does not convert these, Pillow does
            return _decode_pillow(data, max_pixels)
        return simplejpeg.decode_jpeg(data, colorspace="RGB")
    except ValueError as error:  # simplejpeg's only exception; BadImage is one too and passes through
        raise error if isinstance(error, BadImage) else BadImage(f"damaged JPEG: {error}") from error


def _decode_pillow(data: bytes, max_pixels: int) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
        with image:
            _check_size(image.height, image.width, max_pixels)
            return _to_rgb(image)
    except BadImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage(f"too many pixels: {error}") from error
    except Exception as error:  # Pillow's plugins raise almost anything on damaged bytes (struct.error, KeyError ...)
        raise BadImage(f"not a readable image: {error or type(error).__name__}") from error


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):  # I;16 and its byte orders, or I: 16-bit grey. convert("RGB") would clip it to white
        values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        grey = ((values + 128) // 257).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise BadImage("floating-point samples have no agreed range")
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _check_size(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise BadImage(f"{width} x {height} pixels are more than the allowed {max_pixels} (data.max_pixels)")
    if height < 1 or width < 1:
        raise BadImage(f"an image of {width} x {height} pixels")
