"""PNG, whose samples may have 16 bits: its checks, and exact samples where there are more than 8. A part of `decode`."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8

from sere_jax.data.images.rasters import levels
from sere_jax.data.images.reading import ImageReading
from sere_jax.data.images.size import check_size
from sere_jax.data.sources.example import BadImage

PNG = b"\x89PNG\r\n\x1a\n"
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # a pixel, by colour type: grey, RGB, palette, grey with alpha, RGB with alpha
_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))  # top, left, and steps
_PIECE = 1 << 20  # bytes inflated at a time


class PngHeader(NamedTuple):
    """The IHDR chunk of a PNG; `depth` is bits a sample."""

    width: int
    height: int
    depth: int
    colour: int
    interlaced: bool

    @property
    def raw_bytes(self) -> int:
        """Bytes of all rows before compression, each with its filter byte."""
        bits = self.depth * _SAMPLES.get(self.colour, 1)
        passes = _ADAM7 if self.interlaced else ((0, 0, 1, 1),)
        sizes = ((-(-(self.height - top) // down), -(-(self.width - left) // across)) for top, left, down, across in passes)
        return sum(rows * (1 + (columns * bits + 7) // 8) for rows, columns in sizes if rows > 0 and columns > 0)


def png_header(data: bytes, max_pixels: int) -> PngHeader:
    """The header of a PNG. Raises BadImage for none, and for sizes that `check_size` refuses."""
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise BadImage("a PNG without a header")
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    header = PngHeader(width, height, data[24], data[25], data[28] == 1)
    check_size(height, width, max_pixels, len(data))
    return header


def check_png(data: bytes, max_pixels: int) -> PngHeader:
    """The header of a PNG whose checksums of pixels and palette are right and whose rows are complete.

    Raises BadImage otherwise. (Pillow skips the checksums of pixels, and leaves rows that are missing black.)
    """
    header = png_header(data, max_pixels)
    inflater, size = zlib.decompressobj(), 0
    for chunk in _pixel_chunks(data):
        rest: bytes | memoryview = chunk
        while rest and not inflater.eof:
            size += len(inflater.decompress(rest, _PIECE))
            rest = inflater.unconsumed_tail
            if size > header.raw_bytes + _PIECE:  # more than the picture needs
                return header
    if size < header.raw_bytes:
        raise BadImage(f"a PNG with too few pixels: {size} of {header.raw_bytes} bytes")
    return header


def _pixel_chunks(data: bytes) -> Iterator[memoryview]:
    view, start = memoryview(data), len(PNG)
    while start + 12 <= len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        kind = data[start + 4 : start + 8]
        if end > len(data):
            raise BadImage("a PNG that is cut short")
        if kind in (b"IDAT", b"PLTE", b"tRNS") and zlib.crc32(view[start + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise BadImage(f"a damaged PNG: the checksum of its {kind.decode()} is wrong")
        if kind == b"IEND":
            return
        if kind == b"IDAT":
            yield view[start + 8 : end - 4]
        start = end


def decode_png(data: bytes, header: PngHeader) -> UInt8[np.ndarray, "H W 3"] | None:
    """A PNG of at most 8 bits in RGB, without alpha; None where OpenCV cannot read it, or not all of it.

    The checksums are checked here. OpenCV's libpng notices missing rows while it decodes, so that pixels are inflated once only.
    Raises BadImage for a wrong checksum.
    """
    for _ in _pixel_chunks(data):
        pass
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:  # sides above OpenCV's limit of 2^20 pixels
        return None
    return pixels if pixels is not None and pixels.shape == (header.height, header.width, 3) and pixels.dtype == np.uint8 else None


def decode_deep_png(data: bytes, header: PngHeader, reading: ImageReading) -> UInt8[np.ndarray, "H W s"]:
    """A PNG of 16 bits as levels, s = 1 or 3; alpha is dropped. (Pillow would cut RGB to its upper 8 bits.) Raises BadImage."""
    samples = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if samples is None or samples.dtype != np.uint16:
        raise BadImage("a damaged PNG")
    samples = samples.reshape(*samples.shape[:2], -1)
    samples = samples[..., 2::-1] if header.colour in (2, 6) else samples[..., :1]  # OpenCV's order is blue, green, red
    return levels(samples, reading.value_range)
