"""Many names of a store at once: what is not listed yet is divided into ranges of names, which are asked for side by side.

A store answers in pages, in the order of names, and tells where the next page begins only with the page before. So the requests after the
first guess names that lie in between. A guess that is wrong costs an empty page, never a name. A store that does not answer the range that
it was asked for is listed one page after another.
"""

from __future__ import annotations

import bisect
import itertools
import operator
import os
from collections.abc import Callable, Collection
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import Any, NamedTuple, TypeAlias, TypeVar

Item = TypeVar("Item", bound=tuple[Any, ...])  # its first part is its name
# (first name or "", name after the last or None, token of a later page or None) -> items, and the token of the next page.
Ask: TypeAlias = Callable[[str, str | None, str | None], tuple[list[Item], str | None]]

_BYTES = 512  # of a guess; a store takes names of up to 1,024
_EVEN = 12  # ranges of up to 2**12 pages, by the numbers of their names, are cut into equal parts


class _OtherAnswer(Exception):
    """A page that is not in order, or begins before its range."""


class _Range(NamedTuple):
    """Names from `begin` to before `end`, of which those up to `seen` are listed; the request that goes on from there has `token`."""

    begin: str
    end: str | None
    token: str | None = None
    seen: str = ""


def listed(ask: Ask[Item], at_once: int) -> list[Item]:
    """All items of a store, in any order, by at most `at_once` requests at a time.

    When a page is not the last of its range, what is left of the range is divided between its request and those that are idle.

    Raises what `ask` raises.
    """
    try:
        return _in_ranges(ask, at_once)
    except _OtherAnswer:
        items, token = ask("", None, None)
        while token is not None:
            page, token = ask("", None, token)
            items += page
        return items


def _in_ranges(ask: Ask[Item], at_once: int) -> list[Item]:
    items: list[Item] = []
    letters: set[str] = set()
    with ThreadPoolExecutor(at_once) as threads:
        first = _Range("", None)
        running = {threads.submit(ask, *first[:3]): first}
        while running:
            for answer in wait(running, return_when=FIRST_COMPLETED).done:
                part = running.pop(answer)
                page, token = answer.result()
                new, is_end = _inside(part, page)
                items += new
                if token is None or is_end:
                    continue
                rest = [part._replace(token=token, seen=new[-1][0] if new else part.seen)]
                if new and (idle := at_once - len(running) - 1):
                    letters.update(*(item[0] for item in new[::16]), new[-1][0])
                    rest = _divided(rest[0], split(new[0][0], new[-1][0], part.end, idle, letters))
                running |= {threads.submit(ask, *each[:3]): each for each in rest}
    return items


def _inside(part: _Range, page: list[Item]) -> tuple[list[Item], bool]:
    """The items of a page that are in a range and not listed yet, and whether the page reaches beyond the range."""
    names = [item[0] for item in page]
    if (names and names[0] < max(part.begin, part.seen)) or any(map(operator.ge, names, names[1:])):
        raise _OtherAnswer
    first = 1 if names and names[0] == part.seen else 0
    last = len(names) if part.end is None else bisect.bisect_left(names, part.end)
    return page[first:last], last < len(names)


def _divided(part: _Range, points: list[str]) -> list[_Range]:
    """What is not listed of a range, from each point to the next. The token is only of use where there is no point."""
    if not points:
        return [part]
    return [_Range(part.seen, points[0], seen=part.seen), *map(_Range, points, [*points[1:], part.end])]


def split(first: str, last: str, end: str | None, count: int, letters: Collection[str]) -> list[str]:
    """At most `count` names, in order, between `last` and `end`, that divide the names which are expected there.

    Names are read as numbers whose digits are `letters`. Where the page from `first` to `last` is a large enough share of what
    is left, the parts are equal. Else the names may fill any share of it (those of `img_0001.jpg` leave nearly all numbers free):
    for half of the points, each part is the same number of times larger than the one before.

    Args:
      first: the first name of a page.
      last: its last name.
      end: a name after all that are looked for, made by this function; None for no bound.
      count: parts to make, besides the one that begins after `last`.
      letters: the characters of the names, those of `first`, `last` and `end` among them.

    Example:
      >>> split("a", "c", None, 2, "abcdefghi")
      ['ec', 'gf']
    """
    start = os.path.commonprefix([first, last, end or ""])  # noqa: RUF071 (of characters, not of folders)
    digits = {letter: number for number, letter in enumerate(sorted(letters), 1)}
    base, size = len(digits) + 1, max(len(first), len(last)) - len(start) + 1

    def number(name: str) -> int:
        value = 0
        for letter in name[len(start) :][:size].ljust(size, "\0"):
            value = value * base + digits.get(letter, 0)
        return value

    low, high = number(last), base**size if end is None else number(end)
    page = max(low - number(first), 1)
    powers = ((high - low) // page).bit_length() - 1
    grown = count - count // 2 if powers > _EVEN else 0
    even = count - grown
    values = [low + (page << powers * part // grown) for part in range(grown)]
    values += [low + (high - low) * part // (even + 1) for part in range(1, even + 1)]
    points = {start + _name(value, size, ["", *sorted(digits)]) for value in values}
    return sorted(point for point in points if last < point and (end is None or point < end) and len(point.encode()) <= _BYTES)


def _name(value: int, size: int, letters: list[str]) -> str:
    """The name of a number, up to the first digit 0, which is no letter."""
    digits = []
    for _ in range(size):
        value, digit = divmod(value, len(letters))
        digits.append(letters[digit])
    return "".join(itertools.takewhile(bool, reversed(digits)))
