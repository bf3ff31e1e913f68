"""Batches of images with their classes and label maps, for evaluations that train: order, workers and replacements of pre-training."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8, UInt16

from sere_jax.data.annotations.maps import label_map_of
from sere_jax.data.annotations.transforms import Transform
from sere_jax.data.batches.maker import Arrays, BatchMaker, Position, rows_of_process
from sere_jax.data.batches.order import Stream
from sere_jax.data.batches.workers import batches_of_steps
from sere_jax.data.images.decode import BadImage, decode
from sere_jax.data.images.reading import DEFAULT_READING, ImageReading
from sere_jax.data.sources.example import Example, Source


class LabelledImage(NamedTuple):
    """A decoded example; `label_map` is None where label maps are not asked for."""

    image: UInt8[np.ndarray, "H W c"]
    label: int
    label_map: UInt16[np.ndarray, "H W"] | None


class LabelledBatch(NamedTuple):
    """This process's rows of a global batch.

    Attributes:
      images: transformed images.
      labels: classes, positions in the source's `classes`; -1 where there is none.
      label_maps: classes of pixels, moved with the images; None where they are not asked for.
      index: each example's place in the source.
      replaced: whether the row stands in for an example that cannot be read.
    """

    images: UInt8[np.ndarray, "b S T c"]
    labels: Int[np.ndarray, "b"]
    label_maps: UInt16[np.ndarray, "b S T"] | None
    index: Int[np.ndarray, "b"]  # type: ignore[assignment]  # hides tuple.index, as Views does
    replaced: Bool[np.ndarray, "b"]


@dataclasses.dataclass(frozen=True)
class LabelledRow:
    """An image, its class and, with `maps`, its label map, transformed together. A `Row` of `LabelledBatch`."""

    transform: Transform
    reading: ImageReading = DEFAULT_READING
    maps: bool = False

    def empty(self, rows: int) -> Arrays:
        """Images, labels and, with `maps`, label maps."""
        shape = (rows, *self.transform.shape)
        arrays = np.empty((*shape, self.reading.channels), np.uint8), np.empty(rows, np.int32)
        return (*arrays, np.empty(shape, np.uint16)) if self.maps else arrays

    def read(self, example: Example) -> LabelledImage:
        """Raises BadImage where the image or its label map cannot be read, their sizes differ, or a class is wanted and missing."""
        if not self.maps and example.label < 0:
            raise BadImage("it has no class")
        image = decode(example.data, self.reading, reuse=True)
        label_map = label_map_of(example.annotation, image.shape[:2], self.reading.max_pixels) if self.maps else None
        return LabelledImage(image, example.label, label_map)

    def fill(self, decoded: LabelledImage, position: Position, out: Arrays) -> None:
        """Transform the image and its label map with the random numbers of the position."""
        images, labels, *maps = out
        labels[...] = decoded.label
        self.transform(decoded.image, decoded.label_map, position.rng(Stream.VIEWS), images, maps[0] if maps else None)

    def batch(self, arrays: Arrays, index: Int[np.ndarray, "b"], replaced: Bool[np.ndarray, "b"]) -> LabelledBatch:
        """The arrays as a `LabelledBatch`."""
        images, labels, *maps = arrays
        return LabelledBatch(images, labels, maps[0] if maps else None, index, replaced)


def labelled_batches(
    source: Source,
    *,
    transform: Transform,
    maps: bool,
    seed: int,
    batch_size: int,
    total_steps: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    prefetch: int = 2,
    reading: ImageReading = DEFAULT_READING,
    repeats: int = 1,
) -> Iterator[LabelledBatch]:
    """This process's rows of the global batches of steps start_step .. total_steps - 1, as `train_batches` makes them.

    The rows of step k are a function of (source, transform, seed, k), whatever the number of workers and processes. An example whose
    image or label map cannot be read is replaced and logged once. `repeats` copies of an example follow each other, each with its own
    random numbers. Raises ValueError where the source has neither classes nor, with
    `maps`, label maps, or where the batch does not fit the processes or the source; UnreadableData while iterating.
    """
    if maps and source.map_classes is None:
        raise ValueError(f"{source.spec!r} has no label maps; expected masks:DIR:SOURCE, or a prepared set with a feature 'segmentation'")
    if not maps and not source.classes:
        raise ValueError(f"{source.spec!r} has no classes; expected a folder with a sub-folder a class, or another source with labels")
    rows = rows_of_process(batch_size, process_index, process_count)
    maker = BatchMaker(source, LabelledRow(transform, reading, maps), seed, batch_size, rows.start, len(rows), repeats)
    return batches_of_steps(maker, start_step, total_steps, workers=workers, prefetch=prefetch)
