"""The only module that opens images: encoded bytes -> uint8 pixels, RGB, grey or of any number of channels.

Pixels are returned as they are stored. An EXIF orientation tag is ignored by both backends: crop boxes are in stored
pixels, and a decoder that turned some images (as `cv2.imread` does) would make boxes and label maps disagree with them.
Colour profiles and gamma chunks are ignored as well. Transparency is dropped, as `PIL.Image.convert("RGB")` does; of an
animation the first frame is used; 16-bit samples are scaled to 8 bits.

A damaged file is an error. Pillow fills in missing or garbled parts of a JPEG and skips the checksums of PNG pixels, so both are
checked here. (JPEG has no checksum: damage that leaves the right number of blocks cannot be noticed.) `docs/data.md` lists what
becomes of which file.
"""

from __future__ import annotations

import io

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from sere_jax.data.images.deep import PNG, check_png, decode_deep_png, decode_png, png_header
from sere_jax.data.images.heif import decode_heif, is_heif
from sere_jax.data.images.memory import MEMORY
from sere_jax.data.images.pnm import decode_pnm, is_pnm
from sere_jax.data.images.rasters import NPY, decode_npy
from sere_jax.data.images.reading import DEFAULT_READING, ImageReading
from sere_jax.data.images.size import check_size
from sere_jax.data.images.tiff import TIFF, decode_tiff
from sere_jax.data.images.time_limit import OutOfTime, within
from sere_jax.data.sources.example import BadImage

__all__ = ["BadImage", "decode"]

# Pillow would try every format it knows on bytes from anywhere, and for some (EPS) start other programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
_ORIENTATION = 0x0112
_TURN_BACK = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
_SCANS = 20  # passes of a JPEG of max_pixels, and more of smaller ones
_FEW = 4_000_000_000  # passes x pixels


def decode(data: bytes, reading: ImageReading = DEFAULT_READING, *, reuse: bool = False) -> UInt8[np.ndarray, "H W c"]:
    """The pixels of one encoded image, [H, W, channels].

    With 3 channels RGB, with 1 the ITU-R 601-2 luma; with other numbers an array or a TIFF that has so many. The range of
    `reading` applies to all samples of NumPy arrays, to grey and RGB TIFF of 8 bits and more, and to PNG, PGM and PPM of
    more than 8 bits. Files of 8 bits of these and of all other formats are levels already.

    The header's size is checked against `max_pixels` before anything is decoded. With `reuse` the pixels may lie in memory
    that this thread's next call with `reuse` writes to. Raises BadImage, and no other error, where the file cannot be read,
    or not within `reading.seconds`.
    """
    try:
        return within(reading.seconds, _decode, data, reading, reuse)
    except OutOfTime as error:
        raise BadImage(f"decoding {error} and was given up") from error


def _decode(data: bytes, reading: ImageReading, reuse: bool) -> np.ndarray:
    channels, max_pixels = reading.channels, reading.max_pixels
    try:
        if data.startswith(NPY):
            return decode_npy(data, reading)
        if data.startswith(TIFF) and (pixels := decode_tiff(data, reading)) is not None:
            return pixels if channels not in (1, 3) else _in_channels(pixels, channels)
        if channels not in (1, 3):
            raise BadImage(f"no array or TIFF, expected one of {channels} channels")
        if data[:2] == b"\xff\xd8":
            return _decode_jpeg(data, reading, reuse)
        if data.startswith(PNG):
            return _in_channels(_decode_png(data, reading), channels)
        if is_heif(data):
            return _in_channels(decode_heif(data, reading), channels)
        if is_pnm(data):
            return _in_channels(decode_pnm(data, reading), channels)
        return _in_channels(_decode_pillow(data, max_pixels), channels)
    except BadImage:
        raise
    except UnidentifiedImageError as error:
        raise BadImage(f"not a readable image: none of {', '.join(_FORMATS)}, PPM") from error
    except Exception as error:  # readers raise almost anything on damaged bytes (struct.error, KeyError, MemoryError ...)
        raise BadImage(f"not a readable image: {str(error) or type(error).__name__}") from error


def _in_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Grey or RGB in 3 channels, or in 1: the luma by Pillow's formula, which leaves grey pixels as they are."""
    if pixels.shape[2] == 1:
        return pixels if channels == 1 else np.repeat(pixels, 3, axis=2)
    return pixels if channels == 3 else np.asarray(Image.fromarray(pixels).convert("L"))[..., None]


def _decode_jpeg(data: bytes, reading: ImageReading, reuse: bool) -> np.ndarray:
    """JPEG with both backends: libjpeg-turbo reports damage, and decodes the pixels for `fast`."""
    backend, max_pixels, channels = reading.backend, reading.max_pixels, reading.channels
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        check_size(height, width, max_pixels, len(data))
        _check_scans(data, height, width, max_pixels)
        inks = colours in ("CMYK", "YCCK")  # libjpeg-turbo does not turn these into RGB, Pillow does
        if backend == "fast" and colours == "Gray" and channels == 1:
            return simplejpeg.decode_jpeg(data, colorspace="GRAY")
        if backend == "fast" and not inks:
            buffer = MEMORY.array("decoded", (height * width * 3,)) if reuse else None
            return _in_channels(simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=buffer), channels)
        # Decoded at an eighth of the size, only for its warnings: Pillow does not report them.
        simplejpeg.decode_jpeg(data, colorspace="CMYK" if inks else "GRAY", min_height=1, min_width=1, min_factor=8)
    except ValueError as error:  # simplejpeg's only exception; BadImage is one too and passes through
        if isinstance(error, BadImage):
            raise
        if "subsampling" not in str(error).lower():
            raise BadImage(f"damaged JPEG: {error}") from error
        # Sound files of a sampling (4:1:0, mixed) that TurboJPEG does not support. Pillow notices only that a file is cut short.
    return _in_channels(_decode_pillow(data, max_pixels), channels)


def _decode_png(data: bytes, reading: ImageReading) -> np.ndarray:
    header = png_header(data, reading.max_pixels)
    if header.depth == 16:
        return decode_deep_png(data, check_png(data, reading.max_pixels), reading)
    if (pixels := decode_png(data, header)) is not None:
        return pixels
    check_png(data, reading.max_pixels)  # says what is wrong
    return _decode_pillow(data, reading.max_pixels)


def _check_scans(data: bytes, height: int, width: int, max_pixels: int) -> None:
    """Refuse a JPEG of so many passes over its pixels that it would take minutes. A pass takes at least 10 bytes."""
    if height * width * (len(data) // 10) < _FEW:  # a second or two at worst; spares small files the counting
        return
    scans = data.count(b"\xff\xda")
    if scans * height * width > _SCANS * max_pixels:
        raise BadImage(f"a JPEG of {width} x {height} pixels in {scans} passes")


def _decode_pillow(data: bytes, max_pixels: int) -> np.ndarray:
    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        check_size(image.height, image.width, max_pixels, len(data))
        if image.format == "JPEG":
            _check_scans(data, image.height, image.width, max_pixels)
        turned = image.getexif().get(_ORIENTATION) if image.format == "TIFF" else None
        if turned in _TURN_BACK:  # Pillow applies the tag of this format alone
            image.load()
            return _to_rgb(image.transpose(_TURN_BACK[turned]))
        return _to_rgb(image)


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode[0] in "IF":  # convert("RGB") would clip samples of more than 8 bits to white
        raise BadImage(f"samples of Pillow's mode {image.mode} in {image.format}, expected 8 bits")
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))
