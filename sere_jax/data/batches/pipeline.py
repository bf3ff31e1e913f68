"""From a source to batches of `Views` for pre-training: the batch of step k is a pure function of (source, recipe, seed, k).

Workers, processes and restarts only decide who computes a row and when; `docs/data.md` says how a batch is determined.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Int, UInt8

from sere_jax.data.batches.maker import Arrays, BatchMaker, Position, rows_of_process
from sere_jax.data.batches.order import Stream
from sere_jax.data.batches.workers import batches_of_steps
from sere_jax.data.crops.masks import MaskRecipe, no_masks, sample_masks
from sere_jax.data.crops.views import ImageViews, ViewRecipe, empty_views, make_views
from sere_jax.data.images.decode import decode
from sere_jax.data.images.reading import DEFAULT_READING, ImageReading
from sere_jax.data.sources.example import Example, Source
from sere_jax.types import Views

_VIEW_ARRAYS = len(ImageViews._fields)


@dataclasses.dataclass(frozen=True)
class ViewsRow:
    """The crops of one image and, with `masking`, the masks of their patches. A `Row` of `Views`."""

    recipe: ViewRecipe
    reading: ImageReading = DEFAULT_READING
    masking: MaskRecipe | None = None

    def empty(self, rows: int) -> Arrays:
        """Arrays of `ImageViews`, then masks and their indices."""
        views = empty_views(self.recipe, rows, channels=self.reading.channels)
        if self.masking is None:
            return tuple(views)
        shape = (rows, self.recipe.global_count)
        return *views, np.empty((*shape, *self.masking.shape), np.bool_), np.empty((*shape, self.masking.cap), np.int32)

    def read(self, example: Example) -> UInt8[np.ndarray, "H W c"]:
        """The pixels, in memory that the next call writes to. Raises BadImage."""
        return decode(example.data, self.reading, reuse=True)

    def fill(self, decoded: UInt8[np.ndarray, "H W c"], position: Position, out: Arrays) -> None:
        """Crop the image, then draw the masks from a stream of their own."""
        make_views(decoded, self.recipe, position.rng(Stream.VIEWS), self.reading.backend, out=ImageViews(*out[:_VIEW_ARRAYS]))
        if self.masking is None:
            return
        masks, indices = out[_VIEW_ARRAYS:]
        draws = position.step >= self.masking.start_step
        count = self.recipe.global_count
        masks[...], indices[...] = sample_masks(self.masking, count, position.rng(Stream.MASKS)) if draws else no_masks(self.masking, count)

    def batch(self, arrays: Arrays, index: Int[np.ndarray, "b"], replaced: Bool[np.ndarray, "b"]) -> Views:
        """The arrays as `Views`; masks are None without `masking`."""
        masks, indices = arrays[_VIEW_ARRAYS:] or (None, None)
        return Views(*ImageViews(*arrays[:_VIEW_ARRAYS]), index, replaced, masks, indices)


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
    rows = rows_of_process(batch_size, process_index, process_count)
    maker = BatchMaker(source, ViewsRow(recipe, reading, masking), seed, batch_size, rows.start, len(rows))
    return batches_of_steps(maker, start_step, total_steps, workers=workers, prefetch=prefetch)
