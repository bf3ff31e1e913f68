"""Passes over images in which decoding, computing and collecting overlap: order, errors, and who does what."""

from __future__ import annotations

import threading

import jax.numpy as jnp
import numpy as np
import pytest

from sere_jax.evals import overlap


def test_items_are_made_in_another_thread_and_keep_their_order():
    makers = set()

    def items():
        for number in range(20):
            makers.add(threading.current_thread())
            yield number

    assert list(overlap.in_thread(items())) == list(range(20))
    assert len(makers) == 1 and threading.current_thread() not in makers


def test_an_error_while_items_are_made_comes_after_the_items_before_it():
    def items():
        yield 1
        raise OSError("disk")

    taken = []
    with pytest.raises(OSError, match="disk"):
        taken.extend(overlap.in_thread(items()))
    assert taken == [1]


def test_a_pass_that_is_broken_off_ends_its_thread_and_closes_its_source():
    closed = []

    def items():
        try:
            yield from range(1000)
        finally:
            closed.append(True)

    before = threading.active_count()
    results = overlap.in_thread(items())
    assert next(results) == 0
    results.close()
    assert closed == [True] and threading.active_count() == before


def test_the_next_batch_is_started_before_the_last_is_collected():
    started = []

    def compute(batch):
        started.append(batch)
        return {"double": jnp.float32(2 * batch)}

    for batch, results in overlap.computed(range(5), compute):
        assert isinstance(results["double"], np.ndarray) and results["double"] == 2 * batch
        assert started == list(range(min(batch + 2, 5)))
