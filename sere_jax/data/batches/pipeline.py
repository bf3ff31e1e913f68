"""From a source to batches of `Views`, on Grain: the batch of step k is a pure function of (source, recipe, seed, k).

Workers, processes and restarts only decide who computes a row and when; `docs/data.md` says how a batch is determined.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator

import cv2
import grain
import numpy as np
from absl import flags
from grain.experimental import DatasetOptions, WithOptionsIterDataset
from jaxtyping import UInt8

from sere_jax.data.batches.order import Shares, Stream, example_index, position_rng, replacement_index, steps_per_epoch
from sere_jax.data.crops.masks import MaskRecipe, no_masks, sample_masks
from sere_jax.data.crops.views import ImageViews, ViewRecipe, empty_views, make_views
from sere_jax.data.images.decode import BadImage, decode
from sere_jax.data.images.reading import DEFAULT_READING, ImageReading
from sere_jax.data.sources.example import Source
from sere_jax.data.sources.mixture import Mixture
from sere_jax.types import Views

__all__ = ["BatchMaker", "UnreadableData", "steps_per_epoch", "train_batches"]

REPLACEMENTS = 20  # unreadable images in a row before a position gives up
_SHARED_FROM = 1 << 20  # bytes; smaller arrays are cheaper to copy through a pipe than to map
_GRACE = 30.0  # seconds that a worker goes on after SIGTERM
_log = logging.getLogger(__name__)


class UnreadableData(RuntimeError):
    """So many images in a row could not be read that the source itself must be wrong."""


def train_batches(
    source: Source,
    *,
    recipe: ViewRecipe,
    seed: int,
    batch_size: int,
    total_steps: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    prefetch: int = 2,
    reading: ImageReading = DEFAULT_READING,
    masking: MaskRecipe | None = None,
) -> Iterator[Views]:
    """This process's rows of the global batches of steps start_step .. total_steps - 1, in order.

    `batch_size` is global; process i of n yields rows [i B / n, (i + 1) B / n). `workers` processes make whole batches in
    turn (0: a thread of this process makes them, `prefetch` ahead; `prefetch=0`: made when asked for), each `prefetch`
    ahead. Neither changes a byte. Closing the iterator ends the workers. Raises ValueError for a batch that does not
    divide among processes or a source smaller than a batch, UnreadableData (while iterating) when images cannot be read.
    """
    if batch_size % process_count:
        raise ValueError(f"data.batch_size is {batch_size}, expected a multiple of the {process_count} processes")
    rows = batch_size // process_count
    maker = BatchMaker(
        source=source,
        recipe=recipe,
        seed=seed,
        batch_size=batch_size,
        first_row=process_index * rows,
        rows=rows,
        reading=reading,
        masking=masking,
    )
    return _iterate(_dataset(maker, start_step, total_steps, workers, prefetch))


@dataclasses.dataclass(frozen=True)
class BatchMaker:
    """step -> the rows [first_row, first_row + rows) of that step's global batch. Picklable, so that workers hold one."""

    source: Source
    recipe: ViewRecipe
    seed: int
    batch_size: int
    first_row: int
    rows: int
    reading: ImageReading = DEFAULT_READING
    masking: MaskRecipe | None = None
    _reported: set[int] = dataclasses.field(default_factory=set, repr=False, compare=False)

    def __post_init__(self) -> None:
        example_index(self.seed, 0, self.examples, self.batch_size)  # too few examples are told here

    @property
    def examples(self) -> int | Shares:
        """How many examples there are, or the parts of a mixture."""
        return self.source.shares if isinstance(self.source, Mixture) else len(self.source)

    def __call__(self, step: int) -> Views:
        """Every image is decoded once and its views are written where they stay: one buffer a batch."""
        views = empty_views(self.recipe, self.rows, channels=self.reading.channels)
        index = np.empty(self.rows, np.int32)
        replaced = np.empty(self.rows, np.bool_)
        for row in range(self.rows):
            position = int(step) * self.batch_size + self.first_row + row
            image, index[row], replaced[row] = self.read(position)
            rng = position_rng(self.seed, position, Stream.VIEWS)
            make_views(image, self.recipe, rng, self.reading.backend, out=ImageViews(*(array[row] for array in views)))
        masks, mask_indices = self._masks(step)
        return Views(*views, index, replaced, masks, mask_indices)

    def read(self, position: int) -> tuple[UInt8[np.ndarray, "H W c"], int, bool]:
        """The image at a position (until the next call), its index in the source, and whether it replaces an unreadable one.

        A replacement is drawn from the whole source (of a mixture from the same part) by hash(seed, position), as often as needed,
        REPLACEMENTS at most.
        """
        index = example_index(self.seed, position, self.examples, self.batch_size)
        rng = None
        for attempt in range(REPLACEMENTS + 1):
            try:
                return self._decode(index), index, attempt > 0
            except (BadImage, OSError) as error:
                last = str(error)
            rng = rng or position_rng(self.seed, position, Stream.REPLACEMENT)
            index = replacement_index(rng, index, self.examples)
        raise UnreadableData(f"{self.source.spec}: {REPLACEMENTS + 1} images in a row could not be read; the last error: {last}")

    def _decode(self, index: int) -> np.ndarray:
        name = f"item {index}"
        try:
            name, data, *_ = self.source[index]
            return decode(data, self.reading, reuse=True)
        except (BadImage, OSError) as error:
            if index not in self._reported:
                self._reported.add(index)
                _log.warning("%s: %s cannot be read and is replaced: %s", self.source.spec, ascii(name), error)
            raise

    def _masks(self, step: int) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
        masking = self.masking
        if masking is None:
            return None, None
        first = int(step) * self.batch_size + self.first_row
        rngs = (position_rng(self.seed, first + row, Stream.MASKS) for row in range(self.rows))
        hides = step >= masking.start_step
        count = self.recipe.global_count
        drawn = (sample_masks(masking, count, rng) if hides else no_masks(masking, count) for rng in rngs)
        masks, indices = zip(*drawn, strict=True)
        return np.stack(masks), np.stack(indices)


def _dataset(maker: BatchMaker, start_step: int, total_steps: int, workers: int, prefetch: int) -> grain.IterDataset:
    batches = grain.MapDataset.range(start_step, max(start_step, total_steps)).map(maker)
    ahead = 0 if workers else prefetch  # a worker makes one batch at a time and keeps `prefetch` in its own queue
    reading = grain.ReadOptions(num_threads=min(ahead, 1), prefetch_buffer_size=ahead)
    dataset = batches.to_iter_dataset(reading)
    if workers == 0:
        return dataset
    if not flags.FLAGS.is_parsed():  # Grain reads absl flags; a program that does not use absl has not parsed any
        flags.FLAGS.mark_as_parsed()
    queue = max(1, prefetch)
    shared = _shared_memory_threshold(maker, batches=workers * (2 * queue + 1) + 2)
    dataset = WithOptionsIterDataset(dataset, DatasetOptions(min_shm_size=shared))
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=queue)
    return dataset.mp_prefetch(options, functools.partial(_start_worker, os.getpid()))


def _shared_memory_threshold(maker: BatchMaker, batches: int) -> int:
    """Bytes from which an array travels through shared memory; out of reach where that could not hold `batches` batches.

    A container's /dev/shm is often 64 MB, and writing past its end kills a worker with SIGBUS. Pipes are slower and safe.
    """
    needed = batches * maker.rows * sum(array.nbytes for array in empty_views(maker.recipe, channels=maker.reading.channels))
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:  # not Linux: shared memory lives elsewhere
        return _SHARED_FROM
    if needed <= free:
        return _SHARED_FROM
    _log.warning("/dev/shm has %d MB free but up to %d MB are on the way from workers: using pipes (slower)", free >> 20, needed >> 20)
    return sys.maxsize


def _iterate(dataset: grain.IterDataset) -> Iterator[Views]:
    iterator = iter(dataset)
    atexit.register(iterator.close)  # a program that ends without closing us must not leave workers or shared memory
    try:
        yield from iterator
    finally:
        atexit.unregister(iterator.close)
        iterator.close()


def _start_worker(parent: int, index: int, count: int) -> None:
    """Make a worker process a good citizen: one thread, no say in how the run ends, and no life after its parent."""
    del index, count
    cv2.setNumThreads(0)
    # Ctrl-C and a scheduler's SIGTERM reach the whole process group. The trainer saves and then closes its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave_later)
    threading.Thread(target=_watch_parent, args=(parent,), daemon=True).start()


def _leave_later(number: int, frame: object) -> None:
    del frame
    timer = threading.Timer(_GRACE, os._exit, (128 + number,))
    timer.daemon = True  # closed in time, the worker does not wait for the timer
    timer.start()


def _watch_parent(parent: int) -> None:
    """End this process when the trainer was killed. (PR_SET_PDEATHSIG would be bound to the thread that started us, which Grain ends.)"""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
