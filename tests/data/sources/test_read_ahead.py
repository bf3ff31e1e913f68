"""Files that are fetched before they are read: what is fetched when, and what stays in memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from sere_jax.data.sources import read_ahead
from sere_jax.data.sources.read_ahead import ReadAhead


class _Store:
    """File n is n as text. Counts what is fetched."""

    def __init__(self) -> None:
        self.fetched: list[int] = []

    def load(self, number: int) -> bytes:
        self.fetched.append(number)
        if number == 99:
            raise OSError("no such file")
        return str(number).encode()

    def ahead(self, sizes: int = 1) -> ReadAhead:
        return ReadAhead(self.load, np.full(100, sizes))


def test_every_file_is_fetched_once_and_read_as_often_as_it_was_asked_for():
    store = _Store()
    ahead = store.ahead()
    ahead.begin([3, 5, 3])
    assert [ahead.read(number) for number in (3, 5, 3)] == [b"3", b"5", b"3"] and sorted(store.fetched) == [3, 5]
    assert ahead.read(3) == b"3" and sorted(store.fetched) == [3, 3, 5]  # nobody asked for a third one


def test_no_more_is_fetched_than_the_bound_allows_and_all_is_read(monkeypatch):
    monkeypatch.setattr(read_ahead, "_BYTES", 10)
    store = _Store()
    ahead = store.ahead(sizes=4)
    ahead.begin(range(6))
    assert ahead.read(0) == b"0"  # then 1 and 2 fit
    assert ahead.read(4) == b"4"  # out of turn
    ahead._threads.shutdown()
    assert sorted(store.fetched) == [0, 1, 2, 4]


def test_a_file_larger_than_the_bound_is_read_all_the_same(monkeypatch):
    monkeypatch.setattr(read_ahead, "_BYTES", 1)
    ahead = _Store().ahead(sizes=4)
    ahead.begin(range(6))
    assert [ahead.read(number) for number in range(6)] == [b"0", b"1", b"2", b"3", b"4", b"5"]


def test_files_that_nobody_reads_do_not_stop_later_ones(monkeypatch):
    monkeypatch.setattr(read_ahead, "_BYTES", 8)
    store = _Store()
    ahead = store.ahead(sizes=4)
    ahead.begin([90, 91])
    for start in range(0, 40, 2):
        ahead.begin([start, start + 1])
        assert [ahead.read(start), ahead.read(start + 1)] == [str(start).encode(), str(start + 1).encode()]
    assert not ahead._fetches and not ahead._waiting and ahead._bytes == 0


def test_errors_are_raised_where_the_file_is_read():
    ahead = _Store().ahead()
    ahead.begin([99, 14])
    with pytest.raises(OSError, match="no such file"):
        ahead.read(99)
    assert ahead.read(14) == b"14"


def test_threads_that_share_one_read_the_right_files(monkeypatch):
    monkeypatch.setattr(read_ahead, "_BYTES", 5)
    ahead = _Store().ahead()
    numbers = np.random.default_rng(0).integers(14, 30, 400).tolist()

    def batch(start: int) -> list[bytes]:
        rows = numbers[start : start + 8]
        ahead.begin(rows)
        return [ahead.read(number) for number in rows]

    with ThreadPoolExecutor(8) as threads:
        read = [data for rows in threads.map(batch, range(0, 400, 8)) for data in rows]
    assert read == [str(number).encode() for number in numbers]
