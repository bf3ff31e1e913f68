"""Images for evaluations: the shorter side resized, the centre cut out, in the source's order, the last batch padded."""

from __future__ import annotations

import collections
import functools
import logging
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8

from sere_jax.data.images.decode import BadImage, decode
from sere_jax.data.images.reading import DEFAULT_READING, ImageReading
from sere_jax.data.images.resize import resize_bicubic
from sere_jax.data.sources.example import Source

_ELONGATED = 8  # longer side over shorter side from which the crop alone is resized
_log = logging.getLogger(__name__)
# Unreadable images that were logged, by the source while it is open: evaluations during training pass over the same images again.
_logged: weakref.WeakKeyDictionary[Source, set[int]] = weakref.WeakKeyDictionary()


class EvalBatch(NamedTuple):
    """This process's rows of one global batch. Only rows with `valid` count: the others are padding or unreadable images.

    `labels` are -1 where the source has none, `index` is the example's place in the source, -1 in padding.
    """

    images: UInt8[np.ndarray, "b S S c"]
    labels: Int[np.ndarray, "b"]
    index: Int[np.ndarray, "b"]  # type: ignore[assignment]  # hides tuple.index, as Views does
    valid: Bool[np.ndarray, "b"]


Job = tuple[EvalBatch, range]  # an empty batch and the examples that fill its first rows


def eval_batches(
    source: Source,
    *,
    size: int,
    resize: int,
    batch_size: int,
    reading: ImageReading = DEFAULT_READING,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[EvalBatch]:
    """Every example once, in order: the shorter side resized to `resize` pixels, then the centre `size` x `size`.

    `batch_size` is global; process i of n yields rows [i B / n, (i + 1) B / n) of each of the ceil(N / B) batches, so that
    all processes make equally many. The resize is Pillow's antialiased bicubic with either backend.
    `workers` threads decode, one batch ahead (0: none). An unreadable image is logged once and has `valid` False. Raises
    ValueError when the batch does not divide among the processes or `resize` is smaller than `size`.
    """
    if batch_size % process_count:
        raise ValueError(f"batch_size is {batch_size}, expected a multiple of the {process_count} processes")
    if resize < size:
        raise ValueError(f"resize is {resize}, expected at least the crop's size {size}")
    rows = batch_size // process_count
    starts = range(process_index * rows, -(-len(source) // batch_size) * batch_size, batch_size)

    load = functools.partial(_load_row, source, reading=reading, resize=resize, size=size)
    jobs = ((_empty_batch(rows, size, reading.channels), range(start, min(start + rows, len(source)))) for start in starts)
    fetched = _fetched(source, jobs)
    return _in_threads(fetched, load, workers) if workers else _one_by_one(fetched, load)


def _load_row(source: Source, batch: EvalBatch, row: int, index: int, *, reading: ImageReading, resize: int, size: int) -> None:
    batch.index[row] = index
    name = f"item {index}"
    try:
        name, data, batch.labels[row], _ = source[index]
        image = decode(data, reading)
    except (BadImage, OSError) as error:
        logged = _logged.setdefault(source, set())
        if index not in logged:
            logged.add(index)
            _log.warning("%s: %s cannot be read and is left out: %s", source.spec, ascii(name), error)
        return
    batch.images[row] = resize_and_centre_crop(image, resize, size)
    batch.valid[row] = True


def _fetched(source: Source, jobs: Iterator[Job]) -> Iterator[Job]:
    for job in jobs:
        source.read_ahead(job[1])
        yield job


def _one_by_one(jobs: Iterator[Job], load: Callable[[EvalBatch, int, int], None]) -> Iterator[EvalBatch]:
    for batch, indices in jobs:
        for row, index in enumerate(indices):
            load(batch, row, index)
        yield batch


def _in_threads(jobs: Iterator[Job], load: Callable[[EvalBatch, int, int], None], workers: int) -> Iterator[EvalBatch]:
    """The same batches, with the rows of the next one already being decoded while one is used."""
    pending: collections.deque[tuple[EvalBatch, list[Future[None]]]] = collections.deque()
    with ThreadPoolExecutor(workers) as executor:
        for batch, indices in jobs:
            pending.append((batch, [executor.submit(load, batch, row, index) for row, index in enumerate(indices)]))
            if len(pending) > 1:
                yield _finished(*pending.popleft())
        while pending:
            yield _finished(*pending.popleft())


def _finished(batch: EvalBatch, rows: list[Future[None]]) -> EvalBatch:
    for row in rows:
        row.result()
    return batch


def _empty_batch(rows: int, size: int, channels: int) -> EvalBatch:
    images = np.zeros((rows, size, size, channels), np.uint8)
    return EvalBatch(images, np.full(rows, -1, np.int32), np.full(rows, -1, np.int32), np.zeros(rows, np.bool_))


def resize_and_centre_crop(image: UInt8[np.ndarray, "H W c"], resize: int, size: int) -> UInt8[np.ndarray, "S S c"]:
    """torchvision's Resize(resize, bicubic) and CenterCrop(size): the longer side is floored, the crop's corner rounded.

    An image more than 8 times as long as wide is resized inside its crop alone: the whole of 1 x 4000 pixels would take gigabytes. Some of
    its levels may differ by one, and by a few where an overshoot is clipped.
    """
    height, width = image.shape[:2]
    shorter = min(height, width)
    new_width, new_height = (resize if side == shorter else int(resize * side / shorter) for side in (width, height))
    left, top = round((new_width - size) / 2), round((new_height - size) / 2)
    if max(new_width, new_height) > _ELONGATED * resize:
        across, down = width / new_width, height / new_height
        return resize_bicubic(image, size, size, box=(left * across, top * down, (left + size) * across, (top + size) * down))
    if (new_width, new_height) != (width, height):
        image = resize_bicubic(image, new_height, new_width)
    return image[top : top + size, left : left + size]
