"""Images of any number of channels: NumPy arrays and the bands of TIFF files -> uint8 levels. A part of `decode`."""

from __future__ import annotations

import io
import math

import numpy as np
from jaxtyping import UInt8

from sere_jax.data.images.reading import BY_TYPE, ImageReading, ValueRange
from sere_jax.data.sources.example import BadImage

NPY = b"\x93NUMPY"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # both byte orders, classic and BigTIFF


def decode_npy(data: bytes, reading: ImageReading) -> UInt8[np.ndarray, "H W c"]:
    """One array as `numpy.save` writes it: [H, W, c] or [c, H, W]; [H, W] where c = 1. Raises BadImage."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read_header(file)
    if dtype.hasobject or dtype.fields:
        raise BadImage(f"an array of {dtype}, expected numbers")
    _check(shape, dtype, reading)
    size, start = math.prod(shape) * dtype.itemsize, file.tell()
    if len(data) - start < size:
        raise BadImage(f"an array that is cut short: {len(data) - start} of {size} bytes")
    array = np.frombuffer(data, dtype, math.prod(shape), start).reshape(shape, order="F" if fortran_order else "C")
    return levels(_channels_last(array, reading.channels), reading.value_range)


def decode_tiff(data: bytes, reading: ImageReading) -> UInt8[np.ndarray, "H W c"]:
    """The first image of a TIFF with its bands, be they samples of a pixel, planes, or pages of one size. Raises BadImage."""
    import tifffile  # takes a tenth of a second, and most runs read none

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        first = file.series[0]
        _check(first.shape, first.dtype, reading)
        for page in [page for page in first.pages if page is not None]:
            ends = [offset + count for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)]
            if not ends or max(ends) > len(data) or min(page.databytecounts) < 1:
                raise BadImage("a TIFF that is cut short")
        return levels(_channels_last(first.asarray(maxworkers=1), reading.channels), reading.value_range)


def _check(shape: tuple[int, ...], dtype: np.dtype | None, reading: ImageReading) -> None:
    channels, max_pixels = reading.channels, reading.max_pixels
    if not _fits(shape, channels):
        flat = " or H x W" if channels == 1 else ""
        raise BadImage(f"samples of shape {' x '.join(map(str, shape))}, expected H x W x {channels} or {channels} x H x W{flat}")
    if dtype is None or dtype.kind not in "uif":
        raise BadImage(f"samples of type {dtype}, expected whole or floating-point numbers")
    # By memory: as many bytes as RGB of that many pixels has.
    if math.prod(shape) * dtype.itemsize > 3 * max_pixels:
        raise BadImage(f"{math.prod(shape) * dtype.itemsize} bytes of samples are more than RGB of {max_pixels} pixels (data.max_pixels)")


def _fits(shape: tuple[int, ...], channels: int) -> bool:
    if not math.prod(shape):
        return False
    return (len(shape) == 2 and channels == 1) or (len(shape) == 3 and channels in (shape[-1], shape[0]))


def _channels_last(array: np.ndarray, channels: int) -> np.ndarray:
    """[H, W, c] of an array whose shape fits; where both ends fit, the last axis holds the channels."""
    if array.ndim == 2:
        return array[..., None]
    return array if array.shape[-1] == channels else np.moveaxis(array, 0, -1)


def levels(samples: np.ndarray, value_range: ValueRange) -> UInt8[np.ndarray, "..."]:
    """Samples as levels: 255 (x - low) / (high - low), clipped and rounded.

    Without a range uint8 stays and uint16 is scaled from its own; other types, and samples that are not finite, raise BadImage.
    """
    low, high = value_range
    if value_range == BY_TYPE:
        if samples.dtype == np.uint8:
            return np.ascontiguousarray(samples)
        if samples.dtype.kind == "u" and samples.dtype.itemsize == 2:
            return np.ascontiguousarray((samples.astype(np.int32) + 128) // 257, np.uint8)
        raise BadImage(f"samples of type {samples.dtype} have no agreed range; data.value_range says which values become 0 and 255")
    if samples.dtype.kind == "f" and not np.isfinite(samples).all():
        raise BadImage("samples that are not finite numbers")
    shares = (samples.astype(np.float64) - low) / (high - low)
    return np.ascontiguousarray(np.floor(np.clip(shares, 0.0, 1.0) * 255 + 0.5), np.uint8)
