"""Listing by ranges against what a store holds: whatever the names, the sizes of pages and the store's understanding of ranges."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sere_jax.ranges import listed, split

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
NUMBERED = st.builds(
    "{}{:0{}d}{}".format, st.sampled_from(["", "img_", "n0144/n0144_", "p" * 300]), st.integers(0, 5000), st.integers(1, 8), TEXT
)
FEW_LETTERS = st.text("01a\U0001f600", min_size=1, max_size=9)
NAMES = st.one_of(st.sets(names, max_size=80) for names in (TEXT, NUMBERED, FEW_LETTERS, st.one_of(TEXT, NUMBERED)))


class _Store:
    """A store's pages, in the order of the names' bytes. It may ignore a bound, or answer with fewer names than a page has."""

    def __init__(self, names, size, *, begins=True, ends=True, empty=False, backwards=False, seconds=0.0):
        self.names = sorted(names, key=str.encode, reverse=backwards)
        self.size, self.begins, self.ends, self.empty, self.seconds = size, begins, ends, empty, seconds
        self.requests = self.running = self.most = 0
        self._lock = threading.Lock()

    def ask(self, begin, end, token):
        with self._lock:
            self.requests, self.running = self.requests + 1, self.running + 1
            self.most = max(self.most, self.running)
        time.sleep(self.seconds)
        with self._lock:
            self.running -= 1
        inside = [name for name in self.names if (name >= begin or not self.begins) and (end is None or name < end or not self.ends)]
        first, is_empty = map(int, token.split()) if token else (0, self.empty)
        last = first if is_empty else first + self.size
        return [(name, len(name)) for name in inside[first:last]], f"{last} {int(self.empty and not is_empty)}" if last < len(
            inside
        ) else None


@given(NAMES, st.integers(1, 7), st.integers(1, 16), st.booleans(), st.booleans(), st.booleans(), st.booleans())
@example({"a", "ab", "abc", "abcd"}, 1, 16, True, True, False, False)
def test_every_name_is_listed_once(names, size, at_once, begins, ends, empty, backwards):
    store = _Store(names, size, begins=begins, ends=ends, empty=empty, backwards=backwards)
    assert sorted(listed(store.ask, at_once)) == sorted((name, len(name)) for name in names)


@pytest.mark.parametrize("form", ["{:08d}.jpg", "p" * 300 + "{:08d}.jpg", "{}", "n{0:02d}/{0:x}", "{:030b}"])
def test_one_folder_is_listed_by_many_requests_at_once(form):
    names = {form.format(number) for number in range(2000)}
    store = _Store(names, 10, seconds=0.005)
    assert {name for name, _ in listed(store.ask, 16)} == names
    assert 4 < store.most <= 16 and 200 <= store.requests < 600  # a busy machine may end some requests before it begins others


def test_a_small_folder_takes_one_request():
    store = _Store({"a", "b", "c"}, 3)
    assert len(listed(store.ask, 16)) == 3 and store.requests == 1


def test_a_request_that_fails_ends_the_listing():
    def ask(begin, end, token):
        if begin:
            raise OSError("no answer")
        return [("a", 0), ("b", 0)], "token"

    with pytest.raises(OSError, match="no answer"):
        listed(ask, 4)


@given(st.lists(TEXT, min_size=3, max_size=3, unique=True), st.sets(TEXT, max_size=3), st.integers(1, 20), st.booleans())
def test_points_lie_between_the_page_and_the_end_in_order(names, others, count, bounded):
    first, last, end = sorted(names)
    points = split(first, last, end if bounded else None, count, set("".join([*names, *others])))
    assert len(points) <= count and points == sorted(set(points))
    assert all(last < point and (not bounded or point < end) for point in points)
