"""Which example stands at which position of a run, and the randomness that belongs to a position.

A run is an endless sequence of global positions p = step * batch_size + row. Everything about position p is a pure function
of (seed, p): nothing depends on the number of processes or workers, and a run can start anywhere.
"""

from __future__ import annotations

import enum
import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Int


class Stream(enum.IntEnum):
    """Independent random streams of one position."""

    VIEWS = 0
    MASKS = 1
    REPLACEMENT = 2
    ORDER = 3  # of an epoch: here the "position" is the epoch's number
    MIXTURE = 4  # which part of a mixture stands where in an epoch
    LAP = 5  # of a mixture's part: the "position" is the lap's number


class Shares(NamedTuple):
    """A mixture's parts: how many examples each has, and how large its share of a batch is to be (any positive numbers)."""

    sizes: tuple[int, ...]
    weights: tuple[float, ...]

    @property
    def examples(self) -> int:
        """Examples of all parts together, which the length of an epoch is counted in."""
        return sum(self.sizes)


def position_rng(seed: int, position: int, stream: Stream, part: int = 0) -> np.random.Generator:
    """The random numbers of one position: the counter-based Philox, keyed by (seed, position)."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, position], np.uint64), counter=[0, 0, part, int(stream)]))


def steps_per_epoch(examples: int | Shares, batch_size: int) -> int:
    """floor(examples / batch_size). Raises ValueError when not even one batch can be filled."""
    examples = examples.examples if isinstance(examples, Shares) else examples
    if examples < batch_size:
        raise ValueError(f"data.batch_size is {batch_size} but the source has {examples} images; expected a batch of at most {examples}")
    return examples // batch_size


def example_index(seed: int, position: int, examples: int | Shares, batch_size: int) -> int:
    """The example at a position: every epoch of floor(N / B) * B positions is a prefix of its own permutation of N.

    An epoch of a mixture holds the parts in proportion to their weights, shuffled; each part goes through its own examples lap
    by lap, every lap in its own order, and resumes in the next epoch where it stopped. Raises ValueError where an
    epoch is too short to hold one example of each part.
    """
    length = steps_per_epoch(examples, batch_size) * batch_size
    epoch, place = divmod(position, length)
    if isinstance(examples, Shares):
        return int(_mixed(seed, epoch, examples, length)[place])
    return int(_permutation(seed, epoch, examples)[place])


def repeated_position(position: int, repeats: int, examples: int | Shares, batch_size: int) -> int:
    """The position whose example a run takes that shows each example `repeats` times in a row, in other augmentations.

    An epoch has as many positions as before, so it holds the first 1 / `repeats` of its permutation. Source: repeated augmentation
    (Hoffer et al. 2020) as in DeiT.

    >>> [repeated_position(position, 3, 10, 4) for position in range(10)]  # epochs of two batches of four
    [0, 0, 0, 1, 1, 1, 2, 2, 8, 8]
    """
    length = steps_per_epoch(examples, batch_size) * batch_size
    return position - position % length + position % length // repeats


def replacement_index(rng: np.random.Generator, index: int, examples: int | Shares) -> int:
    """Any example in place of the one at `index`; a mixture replaces it within the same part, so that the shares stay."""
    if not isinstance(examples, Shares):
        return int(rng.integers(examples))
    first = 0
    for size in examples.sizes:
        if index < first + size:
            break
        first += size
    return first + int(rng.integers(size))


def counts_in_epoch(shares: Shares, length: int) -> tuple[int, ...]:
    """How many positions of an epoch each part gets: its share of them rounded down, the rest to the largest remainders."""
    exact = np.array(shares.weights) / sum(shares.weights) * length
    counts = np.floor(exact).astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: length - int(counts.sum())]] += 1
    return tuple(counts.tolist())


@functools.lru_cache(maxsize=2)
def _mixed(seed: int, epoch: int, shares: Shares, length: int) -> Int[np.ndarray, "n"]:
    counts = counts_in_epoch(shares, length)
    if not all(counts):
        raise ValueError(f"a mixture with weights {shares.weights}: an epoch of {length} images has none of part {counts.index(0) + 1}")
    parts = position_rng(seed, epoch, Stream.MIXTURE).permutation(np.repeat(np.arange(len(counts)), counts))
    order = np.empty(length, np.int32)
    first = 0
    for part, (size, count) in enumerate(zip(shares.sizes, counts, strict=True)):
        lap, place = divmod(epoch * count, size)
        laps = [
            position_rng(seed, lap + i, Stream.LAP, part).permutation(np.arange(size, dtype=np.int32))
            for i in range(-(-(place + count) // size))
        ]
        order[parts == part] = first + np.concatenate(laps)[place : place + count]
        first += size
    return order


# The whole permutation is cached: 20 ms and 5 MB for an epoch of ImageNet. A keyed permutation of single indices (Grain's
# index_shuffle) needs no memory, but takes milliseconds an index for few examples.
@functools.lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, examples: int) -> Int[np.ndarray, "n"]:
    return position_rng(seed, epoch, Stream.ORDER).permutation(np.arange(examples, dtype=np.int32))
