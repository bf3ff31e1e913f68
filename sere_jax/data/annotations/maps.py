"""Label maps: PNG files whose pixels are class numbers, read without any change of their values.

An image decoder would turn the indices of a palette into colours and scale samples of 2, 4 and 16 bits to 8. Here the stored
number is the class.
"""

from __future__ import annotations

import io
from typing import Literal

import numpy as np
from jaxtyping import UInt16
from PIL import Image

from sere_jax.data.images.deep import PNG, check_png
from sere_jax.data.images.reading import MAX_PIXELS
from sere_jax.data.sources.annotation import Annotation
from sere_jax.data.sources.example import BadImage

NO_MAP = 65535  # every pixel of the map that `prepare` writes for an image without one

# How a map stores a class: in the single sample or palette index of a pixel, or as red + 256 green of an RGB pixel (ImageNet-S).
Coding = Literal["index", "red_green"]

_GREY, _RGB, _PALETTE = 0, 2, 3  # PNG's colour types
_COLOURS = {_RGB: "RGB", 4: "grey with transparency", 6: "RGB with transparency"}
_GREY_STEP = {1: 1, 2: 85, 4: 17, 8: 1, 16: 1}  # by bits: Pillow spreads samples of 2 and 4 bits over 0..255, by these factors


def decode_label_map(data: bytes, *, coding: Coding = "index", max_pixels: int = MAX_PIXELS) -> UInt16[np.ndarray, "H W"]:
    """The class number of every pixel, exactly as stored: 0 to 65535.

    With `coding="index"` a palette PNG gives its indices and a grey PNG of 1, 2, 4, 8 or 16 bits gives its samples. With "red_green" an
    RGB PNG of 8 bits gives red + 256 green. Raises BadImage for a damaged file, for more than `max_pixels`, for another format, and for
    colours or transparency that `coding` does not explain: an RGB map may hold numbers or the colours of a palette, and only its makers
    know which.

    Example:
      >>> palette = Image.fromarray(np.array([[0, 1], [2, 255]], np.uint8), "P")
      >>> palette.putpalette(range(256))
      >>> palette.save(file := io.BytesIO(), "PNG")
      >>> decode_label_map(file.getvalue()).tolist()
      [[0, 1], [2, 255]]
    """
    if not data.startswith(PNG):
        raise BadImage("a label map that is no PNG; other formats may change numbers")
    header = check_png(data, max_pixels)
    expected = (_RGB,) if coding == "red_green" else (_GREY, _PALETTE)
    if header.colour not in expected or (coding == "red_green" and header.depth != 8):
        stored = _COLOURS.get(header.colour, "palette" if header.colour == _PALETTE else "grey")
        wanted = "RGB of 8 bits (red + 256 green)" if coding == "red_green" else "grey or palette, where the stored number is the class"
        raise BadImage(f"a label map in {stored} of {header.depth} bits, expected {wanted}")
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
            samples = np.array(picture).astype(np.uint16)
    except (OSError, ValueError, SyntaxError) as error:
        raise BadImage(f"a label map that cannot be read: {error}") from error
    if coding == "red_green":
        return samples[..., 0] + 256 * samples[..., 1]
    return samples // _GREY_STEP[header.depth] if header.colour == _GREY else samples


def palette_of(data: bytes) -> bytes:
    """The colours of a palette PNG: red, green and blue of each number from 0 on. b"" for grey and RGB maps, and for a damaged file.

    >>> palette = Image.new("P", (1, 1))
    >>> palette.putpalette([0, 0, 0, 128, 0, 0])
    >>> palette.save(file := io.BytesIO(), "PNG")
    >>> list(palette_of(file.getvalue()))
    [0, 0, 0, 128, 0, 0]
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
            return bytes(picture.getpalette("RGB") or ()) if picture.mode == "P" else b""
    except (OSError, ValueError, SyntaxError):
        return b""


def label_map_of(annotation: Annotation | None, shape: tuple[int, int], max_pixels: int = MAX_PIXELS) -> UInt16[np.ndarray, "H W"]:
    """The label map of an image with this height and width. Raises BadImage where there is none, or it is of another size."""
    if annotation is None or annotation.label_map is None:
        raise BadImage("an image without a label map")
    label_map = decode_label_map(annotation.label_map, max_pixels=max_pixels)
    if label_map.shape != shape:
        (height, width), (rows, columns) = shape, label_map.shape
        raise BadImage(f"an image of {width} x {height} pixels with a label map of {columns} x {rows}")
    return label_map
