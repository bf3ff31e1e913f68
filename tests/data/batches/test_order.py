from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sere_jax.data.batches.order import Stream, example_index, position_rng, steps_per_epoch


def test_steps_per_epoch():
    assert steps_per_epoch(10, 3) == 3 and steps_per_epoch(3, 3) == 1
    assert steps_per_epoch(1_281_167, 512) == 2502 and steps_per_epoch(384_862, 256) == 1503  # SPEC 8
    with pytest.raises(ValueError, match="batch_size is 4 but the source has 3 images"):
        steps_per_epoch(3, 4)


@given(st.integers(0, 2**63), st.integers(1, 60), st.integers(1, 60), st.integers(0, 1000))
def test_no_image_comes_twice_in_an_epoch(seed, examples, batch, epoch):
    batch = min(batch, examples)
    length = steps_per_epoch(examples, batch) * batch
    indices = [example_index(seed, epoch * length + place, examples, batch) for place in range(length)]
    assert len(set(indices)) == length and min(indices) >= 0 and max(indices) < examples


def test_epochs_and_seeds_have_orders_of_their_own():
    def epoch(seed, number):
        return tuple(example_index(seed, number * 64 + place, 64, 8) for place in range(64))

    orders = {epoch(seed, number) for seed in range(5) for number in range(5)}
    assert len(orders) == 25


def test_every_example_stands_anywhere_equally_often():
    counts = np.zeros((5, 5))
    for seed in range(4000):
        for place in range(5):
            counts[place, example_index(seed, place, 5, 5)] += 1
    assert counts / 4000 == pytest.approx(np.full((5, 5), 0.2), abs=0.03)  # standard error .006


def test_the_streams_of_a_position_are_independent_and_reproducible():
    draws = {tuple(position_rng(seed, position, stream).random(4)) for seed in (0, 1) for position in (0, 1) for stream in Stream}
    assert len(draws) == 4 * len(Stream)
    first, second = (position_rng(3, 2**40, Stream.VIEWS).random(4) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    # Philox 4x64 with key (seed, position) and a counter whose highest word is the stream.
    raw = np.random.Philox(key=np.array([3, 2**40], np.uint64), counter=np.array([0, 0, 0, 0], np.uint64)).random_raw(1)[0]
    assert first[0] == (int(raw) >> 11) * 2.0**-53
