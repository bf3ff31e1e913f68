"""Which example stands at which position of a run, and the randomness that belongs to a position.

A run is an endless row of global positions p = step * batch_size + row. Everything about position p is a pure function
of (seed, p): nothing depends on the number of processes or workers, and a run can start anywhere.
"""

from __future__ import annotations

import enum
import functools

import numpy as np
from grain.experimental import index_shuffle


class Stream(enum.IntEnum):
    """Independent random streams of one position."""

    VIEWS = 0
    MASKS = 1
    REPLACEMENT = 2


def position_rng(seed: int, position: int, stream: Stream) -> np.random.Generator:
    """The random numbers of one position: the counter-based Philox, keyed by (seed, position)."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, position], np.uint64), counter=[0, 0, 0, int(stream)]))


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """floor(examples / batch_size). Raises ValueError when not even one batch can be filled."""
    if examples < batch_size:
        raise ValueError(f"data.batch_size is {batch_size} but the source has {examples} images; expected a batch of at most {examples}")
    return examples // batch_size


def example_index(seed: int, position: int, examples: int, batch_size: int) -> int:
    """The example at a position: every epoch of floor(N / B) * B positions is a prefix of its own permutation of N."""
    epoch, place = divmod(position, steps_per_epoch(examples, batch_size) * batch_size)
    return index_shuffle(place, max_index=examples - 1, seed=_epoch_seed(seed, epoch), rounds=4)


@functools.lru_cache(maxsize=4)
def _epoch_seed(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
