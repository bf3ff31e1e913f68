"""Batches of images with objects for detectors that train: order, workers and replacements of pre-training, few shapes.

Every image of a batch lies in the left upper corner of the same padded shape. That shape is the smallest of a few buckets that the
step's images fit into, so that a training step is compiled a few times only. It follows from the sizes that the source states and from
the random numbers of the step's positions: every process finds the same one.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8

from sere_jax.data.annotations.placement import Placing, no_objects, place_objects
from sere_jax.data.batches.maker import Arrays, BatchMaker, Position, rows_of_process
from sere_jax.data.batches.order import Stream, example_index, position_rng
from sere_jax.data.batches.workers import batches_of_steps
from sere_jax.data.images.decode import decode
from sere_jax.data.images.reading import DEFAULT_READING, ImageReading
from sere_jax.data.sources.annotation import Annotation, Size
from sere_jax.data.sources.example import BadImage, Example
from sere_jax.data.sources.with_objects import WithObjects
from sere_jax.types import MASK_SIDE, DetectionBatch, Objects

_log = logging.getLogger(__name__)

MULTIPLE = 32  # sides of buckets are multiples of it, as a ResNet and patches of 16 pixels need them for a pyramid
_COMMON = 4 / 3  # longer over shorter side of most photographs


def buckets(size: int, longest: int, multiple: int = MULTIPLE) -> tuple[Size, ...]:
    """The shapes (height, width) that images of a shorter side up to `size` and a longer one up to `longest` are padded to.

    Sides are rounded up to multiples of `multiple`. Upright, lying and mixed images of 4 : 3 have a shape each, and so have longer ones.

    >>> buckets(800, 1333)
    ((800, 1088), (1088, 800), (800, 1344), (1344, 800), (1088, 1088), (1344, 1344))
    >>> buckets(256, 256)
    ((256, 256),)
    """
    longest = max(size, longest)
    sides = (size, min(round(size * _COMMON), longest), longest)
    short, common, long = (-(-side // multiple) * multiple for side in sides)
    shapes = {(short, common), (common, short), (common, common), (short, long), (long, short), (long, long)}
    return tuple(sorted(shapes, key=lambda shape: (shape[0] * shape[1], shape)))


def bucket_of(sizes: Sequence[Size], shapes: Sequence[Size]) -> Size:
    """The smallest of the shapes that holds all sizes; the largest where none does."""
    height, width = (max(side) for side in zip(*sizes, strict=True))
    return next((shape for shape in shapes if height <= shape[0] and width <= shape[1]), shapes[-1])


class AnnotatedImage(NamedTuple):
    """A decoded example."""

    image: UInt8[np.ndarray, "H W c"]
    annotation: Annotation


@dataclasses.dataclass(frozen=True)
class DetectionRow:
    """An image and its objects, placed together. A `Row` of `DetectionBatch`.

    Attributes:
      placing: draws crop, size and mirror image.
      shapes: the buckets, as `buckets` makes them.
      frames: height and width of each example of the source, from which the bucket of a step is found. (1, 1) says that the source does
        not state them; a batch with such an example takes the largest bucket.
      batch_size: of the global batch.
      count: objects of an image; of more than that the largest are used.
      masks: whether objects have masks.
      side: cells along a side of a mask.
    """

    placing: Placing
    shapes: tuple[Size, ...]
    frames: Int[np.ndarray, "n 2"] = dataclasses.field(repr=False, compare=False)
    batch_size: int
    count: int = 100
    masks: bool = True
    side: int = MASK_SIDE
    reading: ImageReading = DEFAULT_READING
    _buckets: dict[tuple[int, int], Size] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )  # of the last step

    def empty(self, rows: int) -> Arrays:
        """Images of the largest bucket, sizes, the bucket of the step, boxes, labels, which are valid, and masks if there are any."""
        height, width = (max(side) for side in zip(*self.shapes, strict=True))
        images = np.zeros((rows, height, width, self.reading.channels), np.uint8)  # padding has the same bytes in every run
        objects = no_objects(rows * self.count, self.side if self.masks else 0)
        arrays = (np.reshape(array, (rows, self.count, *array.shape[1:])) for array in objects if array is not None)
        return (images, np.empty((rows, 2), np.int32), np.empty((rows, 2), np.int32), *arrays)

    def read(self, example: Example) -> AnnotatedImage:
        """Raises BadImage where the image cannot be read or its objects are not annotated."""
        annotation = example.annotation
        if annotation is None or annotation.instances is None or annotation.frame is None:
            raise BadImage("an image without annotated objects")
        return AnnotatedImage(decode(example.data, self.reading, reuse=True), annotation)

    def fill(self, decoded: AnnotatedImage, position: Position, out: Arrays) -> None:
        """Place the image and its objects with the random numbers of the position.

        An image that is larger than stated, or replaces another, is made smaller where it does not fit into the bucket.
        """
        images, sizes, bucket, *arrays = out
        image, (_, instances, frame, _) = decoded
        assert instances is not None and frame is not None  # `read` has refused it
        shape = (image.shape[0], image.shape[1])
        bucket[...] = limits = self.bucket(position.seed, position.step)
        placement = self.placing(shape, position.rng(Stream.VIEWS)).inside(limits)
        objects = place_objects(instances, frame, shape, placement, count=self.count, masks=self.masks, side=self.side)
        height, width = placement.size
        images[:height, :width] = placement.image(image)
        sizes[...] = placement.size
        for array, values in zip(arrays, objects, strict=False):  # without masks there is one array less
            array[...] = values

    def bucket(self, seed: int, step: int) -> Size:
        """The padded shape of a step's global batch."""
        if (seed, step) not in self._buckets:
            self._buckets.clear()
            self._buckets[seed, step] = self._bucket(seed, step)
        return self._buckets[seed, step]

    def _bucket(self, seed: int, step: int) -> Size:
        sizes = []
        for position in range(step * self.batch_size, (step + 1) * self.batch_size):
            height, width = map(int, self.frames[example_index(seed, position, len(self.frames), self.batch_size)])
            if (height, width) == (1, 1):
                return self.shapes[-1]
            sizes.append(self.placing((height, width), position_rng(seed, position, Stream.VIEWS)).size)
        return bucket_of(sizes, self.shapes)

    def batch(self, arrays: Arrays, index: Int[np.ndarray, "b"], replaced: Bool[np.ndarray, "b"]) -> DetectionBatch:
        """The arrays as a `DetectionBatch`, cut to the bucket."""
        images, sizes, bucket, boxes, labels, valid, *masks = arrays
        height, width = bucket[0]
        objects = Objects(boxes, labels, valid, masks[0] if masks else None)
        return DetectionBatch(np.ascontiguousarray(images[:, :height, :width]), sizes, objects, index, replaced)


def detection_batches(
    source: WithObjects,
    *,
    placing: Placing,
    shapes: tuple[Size, ...],
    seed: int,
    batch_size: int,
    total_steps: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    prefetch: int = 2,
    reading: ImageReading = DEFAULT_READING,
    count: int = 100,
    masks: bool = True,
    side: int = MASK_SIDE,
) -> Iterator[DetectionBatch]:
    """This process's rows of the global batches of steps start_step .. total_steps - 1, as `train_batches` makes them.

    The rows of step k are a function of (source, settings, seed, k), whatever the number of workers and processes. An example whose
    image or masks cannot be read is replaced and logged once. Raises ValueError for masks that the source does not have, and where the
    batch does not fit the processes or the source; UnreadableData while iterating.
    """
    if masks and not source.masks:
        raise ValueError(f"{source.spec!r} has boxes without masks; expected masks=False, or a set with segmentations")
    if many := int((source.objects > count).sum()):
        _log.warning("%s: %d images have more than %d objects; the largest boxes are used", source.spec, many, count)
    rows = rows_of_process(batch_size, process_index, process_count)
    row = DetectionRow(placing, shapes, source.frames, batch_size, count, masks, side, reading)
    maker: BatchMaker[Any] = BatchMaker(source, row, seed, batch_size, rows.start, len(rows))
    return batches_of_steps(maker, start_step, total_steps, workers=workers, prefetch=prefetch)
