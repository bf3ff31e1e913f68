"""The images that a backbone takes: made from files, Pillow images and arrays, or checked when the caller made them."""

from __future__ import annotations

import io
import operator
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from PIL import Image

from sere_jax.buckets import is_address
from sere_jax.data.batches.whole_images import resize_and_centre_crop
from sere_jax.data.images.decode import BadImage, decode
from sere_jax.data.images.reading import ImageReading
from sere_jax.data.sources.folder import read_file
from sere_jax.models.resnet import ResNet
from sere_jax.models.vit import ViT
from sere_jax.weights.beside import Preprocess
from sere_jax.writing import place

_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I;16B")  # Pillow's modes that a PNG holds without loss
_HINT = "backbone.prepare(path, Pillow image, array or list of them) makes them"


class BackboneError(ValueError):
    """A backbone was called with something that it cannot take; the message says what was found and what was expected."""


def prepare(images: Any, how: Preprocess, channels: int) -> Float[np.ndarray, "b S S c"]:
    """Decode, resize, crop and normalise one image or a list of them, as evaluations do.

    Every image goes through the decoder of evaluations: an array is read as its `.npy` file would be, a Pillow image as a
    lossless file of its pixels. Raises BackboneError, which names the image.
    """
    reading = ImageReading("pil", channels=channels, value_range=how.value_range)
    squares = np.zeros((0, how.size, how.size, channels), np.uint8)
    items = _items(images)
    if items:
        squares = np.stack([_square(item, f"image {position}", reading, how) for position, item in enumerate(items)])
    mean, std = (np.asarray(values, np.float32) for values in (how.mean, how.std))
    return (squares.astype(np.float32) / 255 - mean) / std


def _items(images: Any) -> list[Any]:
    """The single images of what `prepare` takes: a list, one image, or an array with a batch axis."""
    if isinstance(images, list | tuple):
        return list(images)
    if isinstance(images, str | os.PathLike | Image.Image):
        return [images]
    array = _array(images)
    return list(array) if array.ndim == 4 else [array]


def _square(item: Any, name: str, reading: ImageReading, how: Preprocess) -> np.ndarray:
    """One image as levels [S, S, c]. Raises BackboneError, which begins with `name` and the path of a file."""
    if isinstance(item, str | os.PathLike):
        name = f"{name} ({os.fsdecode(item)})"
    try:
        return resize_and_centre_crop(decode(_encoded(item, name), reading), how.resize, how.size)
    except (BadImage, OSError, ValueError) as error:  # ValueError: a NUL in a path
        advice = "; arrays are read as .npy files are: uint8 or uint16 levels" if isinstance(item, np.ndarray) else ""
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise BackboneError(f"{ascii(name)[1:-1]}: {reason}{advice}") from error


def _encoded(item: Any, name: str) -> bytes:
    """The bytes of a file with the image's pixels."""
    if isinstance(item, str | os.PathLike):
        if is_address(item):
            raise BackboneError(f"{name}: found an address, expected a path on this machine; download it first")
        return read_file(str(place(os.fsdecode(item))))
    if isinstance(item, Image.Image):
        return _png(item)
    file = io.BytesIO()
    np.save(file, _array(item, name), allow_pickle=False)
    return file.getvalue()


def _png(image: Image.Image) -> bytes:
    """A lossless file of a Pillow image. Raises BadImage for one without pixels, and for 32-bit samples."""
    if not image.width or not image.height:
        raise BadImage(f"a Pillow image of {image.width} x {image.height} pixels: expected at least 1 x 1")
    if image.mode in ("I", "F"):
        raise BadImage(f"a Pillow image of mode {image.mode}: 32-bit samples have no agreed range")
    file = io.BytesIO()
    try:
        plain = image if image.mode in _PNG_MODES else image.convert("RGB")
        plain.save(file, "PNG", compress_level=0)
    except Exception as error:  # Pillow decodes here; it raises many types on closed and damaged files
        raise BadImage(f"a Pillow image that cannot be read ({error}); was its file closed before its pixels were loaded?") from error
    return file.getvalue()


def _array(images: Any, name: str = "images") -> np.ndarray:
    """An array of numbers with at least one axis. Raises BackboneError, which begins with `name`, for anything else."""
    kind = type(images).__name__
    try:
        array = np.asarray(images)
    except Exception as error:  # tensors on another device or with a gradient raise types of their own
        raise BackboneError(f"{name}: found {kind}, which NumPy cannot read: {error}") from error
    if array.dtype.kind not in "buifV" or not array.ndim:
        raise BackboneError(f"{name}: found {kind}, expected a path, a Pillow image, an array or a list of them")
    return array


def check(images: Any, module: ViT | ResNet) -> jax.Array:
    """Images [b, H, W, c] as float32, after all that can be wrong with them was looked for.

    Raises BackboneError: no floats (normalised images are floats), another number of axes or channels, channels before height and
    width, sides below a patch, values that are not finite.
    """
    if isinstance(images, str | os.PathLike | list | tuple | Image.Image):
        raise BackboneError(f"images: found {type(images).__name__}, expected an array of normalised floats [b, H, W, c]; {_HINT}")
    array = images if isinstance(images, jax.Array) else _array(images)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise BackboneError(f"images: found {array.dtype}, expected floats that are normalised; {_HINT}")
    _check_shape(array.shape, module)
    array = jnp.asarray(array, jnp.float32)
    if not isinstance(array, jax.core.Tracer):  # inside a caller's jit there are no values to look at
        bad = np.flatnonzero(~np.asarray(jnp.isfinite(array).all(axis=(1, 2, 3))))
        if len(bad):
            raise BackboneError(f"images: found NaN or infinity in image {bad[0]}, expected finite numbers ({len(bad)} such images)")
    return array


def _check_shape(shape: tuple[int, ...], module: ViT | ResNet) -> None:
    channels, extents = module.in_channels, list(shape)
    if len(shape) == 3:
        raise BackboneError(f"images: found shape {extents}, expected [b, H, W, {channels}]; images[None] adds the batch axis")
    if len(shape) != 4:
        raise BackboneError(f"images: found shape {extents}, expected [b, H, W, {channels}]")
    if shape[-1] != channels:
        advice = "; channels stand first: images.transpose(0, 2, 3, 1)" if shape[1] == channels else ""
        raise BackboneError(f"images: found shape {extents}, expected [b, H, W, {channels}]{advice}")
    least = module.patch_size if isinstance(module, ViT) else 1
    if min(shape[1:3]) < least:
        raise BackboneError(f"images: found {shape[1]} x {shape[2]} pixels, expected at least {least} x {least} (a patch)")


def blocks(layers: Any, attention: bool, module: ViT | ResNet) -> tuple[int, ...]:
    """The numbers of the requested blocks, counted from 0; negative ones are counted from the last block (-1).

    Raises BackboneError for a block that there is not, and where a ResNet is asked for layers or attention.
    """
    if isinstance(module, ResNet):
        if attention or not isinstance(layers, Sequence) or layers:
            raise BackboneError("layers, attention: found a request, expected none: a ResNet has neither tokens nor attention")
        return ()
    depth = module.depth
    try:
        wanted = [_number(layers)] if isinstance(layers, int | np.integer) else [_number(layer) for layer in layers]
    except TypeError as error:
        raise BackboneError(f"layers: found {layers!r}, expected whole numbers, such as (0, -1)") from error
    for layer in wanted:
        if not -depth <= layer < depth:
            raise BackboneError(f"layers: found {layer}, expected 0 to {depth - 1}, or -{depth} to -1")
    return tuple(layer % depth for layer in wanted)


def _number(layer: Any) -> int:
    """A whole number of any type. Raises TypeError for others, booleans among them, which Python counts as 0 and 1."""
    if isinstance(layer, bool):
        raise TypeError("a boolean is no number of a block")
    return operator.index(layer)
