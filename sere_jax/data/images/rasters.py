"""Numbers -> levels: how samples of any type become 8 bits, and NumPy arrays of any number of channels. A part of `decode`."""

from __future__ import annotations

import io
import math

import numpy as np
from jaxtyping import UInt8

from sere_jax.data.images.reading import BY_TYPE, ImageReading, ValueRange
from sere_jax.data.sources.example import BadImage

NPY = b"\x93NUMPY"
_PIECE = 1 << 20  # samples that become floating-point numbers at a time: 8 bytes each


def decode_npy(data: bytes, reading: ImageReading) -> UInt8[np.ndarray, "H W c"]:
    """One array as `numpy.save` writes it: [H, W, c] or [c, H, W]; [H, W] where c = 1. Raises BadImage."""
    file = io.BytesIO(data)
    shape, fortran_order, dtype = _header(file)
    if dtype.hasobject or dtype.fields:
        raise BadImage(f"an array of {dtype}, expected numbers")
    if not _fits(shape, reading.channels):
        raise BadImage(shape_message(shape, reading.channels))
    check_samples(math.prod(shape), dtype, reading.max_pixels)
    size, start = math.prod(shape) * dtype.itemsize, file.tell()
    if len(data) - start < size:
        raise BadImage(f"an array that is cut short: {len(data) - start} of {size} bytes")
    array = np.frombuffer(data, dtype, math.prod(shape), start).reshape(shape, order="F" if fortran_order else "C")
    return levels(_channels_last(array, reading.channels), reading.value_range)


def _header(file: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return read(file)
    except Exception as error:  # of many types; some advise to load the file in a way that runs code in it
        raise BadImage("an array whose header cannot be read") from error


def shape_message(shape: tuple[int, ...], channels: int) -> str:
    """Says which shape a file has and which shapes `channels` allows."""
    flat = " or H x W" if channels == 1 else ""
    return f"samples of shape {' x '.join(map(str, shape))}, expected H x W x {channels} or {channels} x H x W{flat}"


def check_samples(count: int, dtype: np.dtype | None, max_pixels: int) -> None:
    """Raises BadImage for samples that are no numbers, or that take more bytes than RGB of `max_pixels` pixels."""
    if dtype is None or dtype.kind not in "uif":
        raise BadImage(f"samples of type {dtype}, expected whole or floating-point numbers")
    if count * dtype.itemsize > 3 * max_pixels:
        raise BadImage(f"{count * dtype.itemsize} bytes of samples are more than RGB of {max_pixels} pixels (data.max_pixels)")


def _fits(shape: tuple[int, ...], channels: int) -> bool:
    if not all(type(side) is int and side > 0 for side in shape):
        return False
    return (len(shape) == 2 and channels == 1) or (len(shape) == 3 and channels in (shape[-1], shape[0]))


def _channels_last(array: np.ndarray, channels: int) -> np.ndarray:
    """[H, W, c] of an array whose shape fits; where both ends fit, the last axis holds the channels."""
    if array.ndim == 2:
        return array[..., None]
    return array if array.shape[-1] == channels else np.moveaxis(array, 0, -1)


def levels(samples: np.ndarray, value_range: ValueRange, white: int = 0) -> UInt8[np.ndarray, "..."]:
    """Samples as levels: 255 (x - low) / (high - low), clipped, rounded half up.

    Without a range (`BY_TYPE`) low is 0 and high is `white`, or the largest value of uint8 and uint16 where `white` is 0.
    Raises BadImage for other types without a range, and for samples that are not finite.
    """
    if samples.dtype.kind == "f" and not np.isfinite(samples).all():
        raise BadImage("samples that are not finite numbers")
    low, high = value_range
    if value_range == BY_TYPE:
        if samples.dtype.kind != "u" or samples.dtype.itemsize > 2:
            raise BadImage(f"samples of type {samples.dtype} have no agreed range; data.value_range says which values become 0 and 255")
        high = white or np.iinfo(samples.dtype).max
        if high == 255 and samples.dtype.itemsize == 1:
            return np.ascontiguousarray(samples)
    out = np.empty(samples.shape, np.uint8)
    rows = max(1, _PIECE * len(samples) // max(1, samples.size))
    for first in range(0, len(samples), rows):
        piece = samples[first : first + rows]
        if value_range == BY_TYPE and high == 65535:  # in whole numbers, three times faster
            out[first : first + rows] = (piece.astype(np.int32) + 128) // 257
        else:
            shares = (piece.astype(np.float64) - low) / (high - low)
            out[first : first + rows] = np.floor(np.clip(shares, 0.0, 1.0) * 255 + 0.5)
    return out
