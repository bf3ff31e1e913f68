"""Attention maps while a run trains: one picture an evaluation, in TensorBoard."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from sere_jax.buckets import Location
from sere_jax.data.batches.whole_images import resize_and_centre_crop
from sere_jax.data.images.reading import ImageReading
from sere_jax.data.sources.example import Source
from sere_jax.evals.features import normalise, to_host
from sere_jax.evals.figures import attention, canvas
from sere_jax.evals.network import EvalError, Network, prepared, shared_reading
from sere_jax.evals.pictures import LeftOut, read_pictures
from sere_jax.reporting.tensorboard import EventFile
from sere_jax.types import PyTree

_SIDE = 112  # pixels of a panel at least
_MOST_HEADS = 12
Draw = Callable[[PyTree, int], Iterator[tuple[str, float]]]


def periodic(
    network: Network, source: Source, count: int, directory: Location, *, size: int = 0, resize: int = 0, reading: ImageReading
) -> Draw:
    """(parameters, step) -> no score; a picture `attention` in `directory` for TensorBoard: `panels` of the first `count` images.

    It costs one forward pass of these images. Process 0 does it; every process must call it. Raises EvalError where no image can be
    read, before training starts.
    """
    side, shorter = prepared(network, size, resize)
    pictures = list(read_pictures(source, range(min(count, len(source))), LeftOut(), shared_reading([network], reading)))
    if not pictures:
        raise EvalError(f"eval.attention_images: none of the first {count} images of {source.spec!r} can be read; expected at least one")
    images = np.stack([resize_and_centre_crop(picture.pixels, shorter, side) for picture in pictures])
    grid = (side // network.patch, side // network.patch)
    files: list[EventFile] = []

    @jax.jit
    def attend(params: PyTree) -> Float[jax.Array, "b m n n"]:
        return network.apply(params, normalise(images, network.mean, network.std), attention=True).attention  # type: ignore[return-value]

    def draw(params: PyTree, step: int) -> Iterator[tuple[str, float]]:
        params = to_host(params)
        if jax.process_index() == 0:
            maps = attention.cls_attention(np.asarray(attend(params)), grid)
            if not files:  # after a restart TensorBoard hides the later pictures of the run before it
                files.append(EventFile(directory, after=step - 1))
            files[0].write_image(step, "attention", png(panels(images, maps)))
            files[0].flush()
        return iter(())

    return draw


def panels(images: UInt8[np.ndarray, "b H W c"], maps: Float[np.ndarray, "b m h w"]) -> UInt8[np.ndarray, "R C 3"]:
    """A row for each image: the image, all heads in colours, then each of the first twelve heads, white where its attention is largest."""
    times = -(-_SIDE // images.shape[1])
    rows = []
    for image, heads in zip(images, maps, strict=True):
        large = image.repeat(times, axis=0).repeat(times, axis=1)
        every = np.round(255 * attention.overlay(large, heads)).astype(np.uint8)
        greys = [_grey(head, large.shape[0]) for head in heads[:_MOST_HEADS]]
        rows.append(np.concatenate([canvas.shown(large), every, *greys], axis=1))
    return np.concatenate(rows)


def png(pixels: UInt8[np.ndarray, "R C 3"]) -> bytes:
    """The picture as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def _grey(head: Float[np.ndarray, "h w"], side: int) -> UInt8[np.ndarray, "s s 3"]:
    places = np.arange(side) * head.shape[0] // side
    levels = np.round(255 * canvas.stretch(head)).astype(np.uint8)
    return levels[places][:, places, None].repeat(3, axis=2)
