"""PBM, PGM and PPM, as text and as bytes, with any white level. A part of `decode`.

Pillow reads most of these in Python, one sample at a time, and text takes it a time that grows with the square of the comments.
"""

from __future__ import annotations

import re

import numpy as np
from jaxtyping import UInt8

from sere_jax.data.images.rasters import levels
from sere_jax.data.images.reading import BY_TYPE, ImageReading
from sere_jax.data.images.size import check_size
from sere_jax.data.sources.example import BadImage

# Possessive: an expression that may divide blanks in several ways takes for ever on a header of blanks, and nothing can interrupt it.
_NUMBER = rb"(?:\s|#[^\n\r]*+[\n\r])++(\d{1,10}+)"
_HEADER = {kinds: re.compile(rb"P[%b]" % kinds + _NUMBER * count) for kinds, count in ((b"14", 2), (b"2356", 3))}
_COMMENT = re.compile(rb"#[^\n\r]*+")
_BLANK = re.compile(rb"\s")
_BLANKS = b" \t\n\v\f\r"
_PIECE = 1 << 20  # characters of text that are divided into numbers at a time


def is_pnm(data: bytes) -> bool:
    """Whether the file begins as one of the six kinds."""
    return data[:1] == b"P" and data[1:2] in (b"1", b"2", b"3", b"4", b"5", b"6")


def decode_pnm(data: bytes, reading: ImageReading) -> UInt8[np.ndarray, "H W s"]:
    """The pixels as levels, s = 1 or 3. A `value_range` applies where white is above 255. Raises BadImage."""
    kind = data[1:2]
    match = next((found for kinds, header in _HEADER.items() if kind in kinds and (found := header.match(data))), None)
    if match is None:
        raise BadImage("a PNM without a header")
    width, height, white = (*map(int, match.groups()), 1)[:3]
    if not 0 < white < 65536:
        raise BadImage(f"a PNM with a white of {white}, expected 1 to 65535")
    check_size(height, width, reading.max_pixels, len(data))
    shape = (height, width, 3 if kind in b"36" else 1)
    if kind in b"14":
        return np.where(_bits(data, match.end(), kind, height, width), np.uint8(0), np.uint8(255)).reshape(shape)
    samples = (_text if kind in b"23" else _bytes)(data, match.end(), height * width * shape[2], white)
    if white not in (255, 65535) and samples.max() > white:
        raise BadImage(f"a PNM with samples of up to {samples.max()}, above its white of {white}")
    return levels(samples.reshape(shape), reading.value_range if white > 255 else BY_TYPE, white)


def _bits(data: bytes, start: int, kind: bytes, height: int, width: int) -> np.ndarray:
    """The bits of a PBM, 1 = black."""
    if kind == b"4":
        row_bytes = -(-width // 8)
        rows = np.frombuffer(_raw(data, start, height * row_bytes), np.uint8).reshape(height, row_bytes)
        return np.unpackbits(rows, axis=1, count=width)
    digits = _COMMENT.sub(b"", data[start:]).translate(None, _BLANKS)[: height * width]
    bits = np.frombuffer(digits, np.uint8) - ord("0")
    if len(bits) < height * width or (bits > 1).any():
        raise BadImage(f"a PBM of {width} x {height} pixels with other text than so many zeros and ones")
    return bits


def _bytes(data: bytes, start: int, count: int, white: int) -> np.ndarray:
    dtype = np.dtype(np.uint8) if white < 256 else np.dtype(">u2")
    samples = np.frombuffer(_raw(data, start, count * dtype.itemsize), dtype)
    return samples.astype(dtype.newbyteorder("="), copy=False)


def _raw(data: bytes, start: int, size: int) -> memoryview:
    """The bytes after the header and one blank."""
    if not _BLANK.match(data, start) or len(data) - start - 1 < size:
        raise BadImage(f"a PNM that is cut short: {max(0, len(data) - start - 1)} of {size} bytes")
    return memoryview(data)[start + 1 : start + 1 + size]


def _text(data: bytes, start: int, count: int, white: int) -> np.ndarray:
    """Samples that are written as text, as whole numbers."""
    text = _COMMENT.sub(b"", data[start:])
    samples = np.zeros(count, np.uint8 if white < 256 else np.uint16)
    number, at = 0, 0
    while number < count:
        if at >= len(text):
            raise BadImage(f"a PNM that is cut short: {number} of {count} samples")
        blank = _BLANK.search(text, at + _PIECE)
        end = blank.start() if blank else len(text)
        words = text[at:end].split()[: count - number]
        if words and not b"".join(words).isdigit():
            raise BadImage("a PNM with text that is no whole number")
        values = np.array(words, np.float64)  # as text; NumPy reads the numbers
        if len(values) and values.max() > white:
            raise BadImage(f"a PNM with samples of up to {values.max():g}, above its white of {white}")
        samples[number : number + len(words)] = values
        number, at = number + len(words), end
    return samples
