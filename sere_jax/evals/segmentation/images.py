"""Images with the classes of their pixels, in their own size; and how a patch gets a class."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from sere_jax.data.annotations.maps import label_map_of
from sere_jax.data.images.decode import decode
from sere_jax.data.images.reading import DEFAULT_READING, ImageReading
from sere_jax.data.sources.example import Example, Source
from sere_jax.evals.pictures import LeftOut, read_examples
from sere_jax.evals.segmentation.labelling import NONE, Labelling


class MaskedPicture(NamedTuple):
    """One decoded image of a source, and the class of every pixel (-1: ignored)."""

    position: int
    name: str
    pixels: UInt8[np.ndarray, "H W c"]
    truth: Int[np.ndarray, "H W"]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.truth.shape[0], self.truth.shape[1]


def read_masked(
    source: Source, positions: Iterable[int], labelling: Labelling, left_out: LeftOut, reading: ImageReading = DEFAULT_READING
) -> Iterator[MaskedPicture]:
    """Decode images and label maps, one at a time. Those that cannot be read are added to `left_out`.

    Raises EvalError for a number that is no class: it would be wrong in every image.
    """

    def read(example: Example) -> tuple[np.ndarray, np.ndarray]:
        pixels = decode(example.data, reading)
        return pixels, label_map_of(example.annotation, pixels.shape[:2], reading.max_pixels)

    for position, name, (pixels, label_map) in read_examples(source, positions, left_out, read):
        yield MaskedPicture(position, name, pixels, labelling.targets(label_map, name))


def patch_classes(truth: Int[np.ndarray, "H W"], grid: tuple[int, int], classes: int) -> Int[np.ndarray, "h w"]:
    """The class that covers most pixels of each patch of a grid over the whole image, -1 where none of its pixels counts.

    Of equally large classes the lower one is taken. A pixel belongs to the patch that its centre lies in.

    >>> patch_classes(np.array([[0, 1, 1, -1], [1, 1, 2, -1]]), (1, 2), 3).tolist()
    [[1, 1]]
    """
    rows, columns = ((np.arange(pixels) + 0.5) * cells // pixels for pixels, cells in zip(truth.shape, grid, strict=True))
    patches = (rows[:, None] * grid[1] + columns).astype(np.int64)
    counted = truth != NONE
    cells = patches[counted] * classes + truth[counted]
    pixels = np.bincount(cells, minlength=grid[0] * grid[1] * classes).reshape(-1, classes)
    return np.where(pixels.any(axis=1), pixels.argmax(axis=1), NONE).astype(np.int32).reshape(grid)
