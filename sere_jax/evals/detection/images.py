"""Test images for detectors: whole, placed, images of similar shape together in padded batches; and the results of all of them."""

from __future__ import annotations

import collections
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Int, UInt8

from sere_jax.data.annotations.placement import WholeImage
from sere_jax.data.batches.detection import bucket_of
from sere_jax.data.images.reading import DEFAULT_READING, ImageReading
from sere_jax.data.sources.annotation import Size
from sere_jax.data.sources.example import Source
from sere_jax.evals.detection.results import results_of
from sere_jax.evals.detection.scores import Truth
from sere_jax.evals.overlap import computed
from sere_jax.evals.pictures import LeftOut, read_pictures
from sere_jax.types import Detections


class PlacedImages(NamedTuple):
    """Whole images of one bucket, each in the left upper corner. Rows of padding have the position -1 and the size 1 x 1."""

    images: UInt8[np.ndarray, "b H W c"]
    sizes: Int[np.ndarray, "b 2"]  # (height, width) without the padding
    positions: Int[np.ndarray, "b"]  # in the source


def placed_images(
    source: Source,
    positions: Iterable[int],
    left_out: LeftOut,
    *,
    placing: WholeImage,
    shapes: Sequence[Size],
    batch_size: int,
    reading: ImageReading = DEFAULT_READING,
) -> Iterator[PlacedImages]:
    """Every image at these positions once, in batches of one bucket each, so that few shapes are compiled and little is padded.

    A batch is complete as soon as its bucket has `batch_size` images; the last ones of each bucket are padded with empty rows. Images
    that cannot be read are added to `left_out`.
    """
    waiting: dict[Size, list[tuple[int, np.ndarray]]] = collections.defaultdict(list)
    for picture in read_pictures(source, positions, left_out, reading):
        placement = placing((picture.pixels.shape[0], picture.pixels.shape[1]))
        shape = bucket_of([placement.size], shapes)
        waiting[shape].append((picture.position, placement.inside(shape).image(picture.pixels)))
        if len(waiting[shape]) == batch_size:
            yield _batch(shape, waiting.pop(shape), batch_size)
    for shape, rows in waiting.items():
        yield _batch(shape, rows, batch_size)


def _batch(shape: Size, rows: Sequence[tuple[int, np.ndarray]], batch_size: int) -> PlacedImages:
    images = np.zeros((batch_size, *shape, rows[0][1].shape[2]), np.uint8)
    sizes, positions = np.ones((batch_size, 2), np.int32), np.full(batch_size, -1, np.int32)
    for row, (position, pixels) in enumerate(rows):
        height, width = sizes[row] = pixels.shape[:2]
        images[row, :height, :width], positions[row] = pixels, position
    return PlacedImages(images, sizes, positions)


def results_of_images(batches: Iterable[PlacedImages], detect: Callable[[PlacedImages], Detections], truth: Truth) -> list[dict[str, Any]]:
    """The results of all images by the position of their image, in COCO's form. `detect` starts the device's work for a batch.

    Masks are pasted while the device works on the next batch.
    """
    results: dict[int, list[dict[str, Any]]] = {}
    for batch, detections in computed(batches, detect):
        for row, position in enumerate(batch.positions.tolist()):
            if position >= 0:
                image = truth.table["images"][position]
                one = jax.tree.map(lambda array, row=row: array[row], detections)
                size = (int(batch.sizes[row, 0]), int(batch.sizes[row, 1]))
                frame = (image["height"], image["width"])
                results[position] = results_of(one, size, image_id=image["id"], frame=frame, class_ids=truth.class_ids)
    return [result for position in sorted(results) for result in results[position]]


def of_all_processes(results: Sequence[Any]) -> list[Any]:
    """What every process has, one process after the other; each gets all. For results, and positions left out: all that JSON can hold."""
    if jax.process_count() == 1:
        return list(results)
    text = np.frombuffer(json.dumps(results).encode(), np.uint8)
    lengths = np.asarray(multihost_utils.process_allgather(np.array(len(text)))).reshape(-1)
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(text)] = text
    texts = np.asarray(multihost_utils.process_allgather(padded))
    return [result for line, length in zip(texts, lengths, strict=True) for result in json.loads(line[:length].tobytes())]
