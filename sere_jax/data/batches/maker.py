"""Batches by step number: which examples a batch holds, what replaces unreadable ones, and the interface of a row.

What a row holds is an argument: crops for pre-training (`pipeline`), an image and its annotation for evaluations (`labelled`).
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int

from sere_jax.data.batches.order import Shares, Stream, example_index, position_rng, repeated_position, replacement_index
from sere_jax.data.sources.example import BadImage, Example, Source
from sere_jax.data.sources.mixture import Mixture

REPLACEMENTS = 20  # unreadable images in a row before a position gives up
_log = logging.getLogger(__name__)

BatchT = TypeVar("BatchT")
BatchT_co = TypeVar("BatchT_co", covariant=True)
Arrays = tuple[np.ndarray, ...]


class BatchError(RuntimeError):
    """No more batches can be made. The message says why, in one line."""


class UnreadableData(BatchError):
    """So many images in a row could not be read that the source itself must be wrong."""


def rows_of_process(batch_size: int, process_index: int, process_count: int) -> range:
    """The rows of the global batch that a process makes. Raises ValueError where the batch does not divide among the processes."""
    if batch_size % process_count:
        raise ValueError(f"data.batch_size is {batch_size}, expected a multiple of the {process_count} processes")
    rows = batch_size // process_count
    return range(process_index * rows, (process_index + 1) * rows)


class Position(NamedTuple):
    """A row of a run: `number` is step x batch size + row of the global batch. All randomness of the row belongs to it."""

    seed: int
    number: int
    step: int

    def rng(self, stream: Stream) -> np.random.Generator:
        """The random numbers of one stream, the same at every call."""
        return position_rng(self.seed, self.number, stream)


@runtime_checkable
class Row(Protocol[BatchT_co]):
    """How an example becomes a row of a batch. Picklable, because worker processes get a copy.

    `BatchMaker` calls `empty` once a batch, then `read` and `fill` for each row, then `batch`.
    """

    def empty(self, rows: int) -> Arrays:
        """Uninitialised arrays of a batch, each with a leading axis of `rows`."""
        ...

    def read(self, example: Example) -> Any:
        """The decoded example. Raises BadImage where it cannot be read; another example then replaces it."""
        ...

    def fill(self, decoded: Any, position: Position, out: Arrays) -> None:
        """Write one row: `out` are views of that row of each array."""
        ...

    def batch(self, arrays: Arrays, index: Int[np.ndarray, "b"], replaced: Bool[np.ndarray, "b"]) -> BatchT_co:
        """The finished batch; `index` is each example's place in the source, `replaced` marks replacements."""
        ...


@dataclasses.dataclass(frozen=True)
class BatchMaker(Generic[BatchT]):
    """step -> the rows [first_row, first_row + rows) of that step's global batch. Picklable, so that workers hold one."""

    source: Source
    row: Row[BatchT]
    seed: int
    batch_size: int
    first_row: int
    rows: int
    repeats: int = 1  # how often in a row an example is shown
    _reported: set[int] = dataclasses.field(default_factory=set, repr=False, compare=False)

    def __post_init__(self) -> None:
        example_index(self.seed, 0, self.examples, self.batch_size)  # raises where there are too few examples

    @property
    def examples(self) -> int | Shares:
        """How many examples there are, or the parts of a mixture."""
        return self.source.shares if isinstance(self.source, Mixture) else len(self.source)

    def __call__(self, step: int) -> BatchT:
        """Decode every example once and write its row into the arrays of the batch."""
        arrays = self.row.empty(self.rows)
        index = np.empty(self.rows, np.int32)
        replaced = np.empty(self.rows, np.bool_)
        first = int(step) * self.batch_size + self.first_row
        self.source.read_ahead([self._index(position) for position in range(first, first + self.rows)])
        for row in range(self.rows):
            position = first + row
            decoded, index[row], replaced[row] = self.read(position)
            self.row.fill(decoded, Position(self.seed, position, int(step)), tuple(array[row, ...] for array in arrays))
        return self.row.batch(arrays, index, replaced)

    def read(self, position: int) -> tuple[Any, int, bool]:
        """What the row reads at a position (valid until the next call), its index in the source, and whether it is a replacement.

        A replacement is drawn from the whole source (or from the same part of a mixture) by hash(seed, position), as often as needed,
        REPLACEMENTS times at most. Raises UnreadableData after that.
        """
        index = self._index(position)
        rng = None
        for attempt in range(REPLACEMENTS + 1):
            try:
                return self._decode(index), index, attempt > 0
            except (BadImage, OSError) as error:
                last = str(error)
            rng = rng or position_rng(self.seed, position, Stream.REPLACEMENT)
            index = replacement_index(rng, index, self.examples)
        raise UnreadableData(f"{self.source.spec}: {REPLACEMENTS + 1} images in a row could not be read; the last error: {last}")

    def _index(self, position: int) -> int:
        place = repeated_position(position, self.repeats, self.examples, self.batch_size)
        return example_index(self.seed, place, self.examples, self.batch_size)

    def _decode(self, index: int) -> Any:
        name = f"item {index}"
        try:
            example = self.source[index]
            name = example.name
            return self.row.read(example)
        except (BadImage, OSError) as error:
            if index not in self._reported:
                self._reported.add(index)
                _log.warning("%s: %s cannot be read and is replaced: %s", self.source.spec, ascii(name), error)
            raise
