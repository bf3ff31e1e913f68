"""Single images of a source by position. Images that cannot be read are left out and recorded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import UInt8

from sere_jax.data.images.decode import BadImage, decode
from sere_jax.data.images.reading import DEFAULT_READING, ImageReading
from sere_jax.data.sources.example import Example, Source

_log = logging.getLogger(__name__)
Content = TypeVar("Content")
_NAMED = 3  # unreadable images that a note names


class Picture(NamedTuple):
    """One decoded image of a source."""

    position: int
    name: str
    pixels: UInt8[np.ndarray, "H W c"]


class LeftOut(dict[int, str]):
    """Images that were left out: position in the source -> name. Each is logged once.

    Attributes:
      too_small: the positions of those that can be read.
    """

    def __init__(self) -> None:
        super().__init__()
        self.too_small: set[int] = set()

    def add(self, source: Source, position: int, name: str, reason: object, too_small: bool = False) -> None:
        """Record an image that was left out, for this reason."""
        if too_small:
            self.too_small.add(position)
        if position not in self:
            _log.warning("%s: %s is left out: %s", source.spec, ascii(name), reason)
        self[position] = name

    def unreadable(self) -> list[str]:
        """The names of those that cannot be read."""
        return [name for position, name in self.items() if position not in self.too_small]

    def small(self) -> list[str]:
        """The names of those that are too small for the evaluation."""
        return [name for position, name in self.items() if position in self.too_small]


def read_examples(
    source: Source, positions: Iterable[int], left_out: LeftOut, read: Callable[[Example], Content]
) -> Iterator[tuple[int, str, Content]]:
    """Position, name and what `read` makes of each example, one at a time. Those that cannot be read are added to `left_out`."""
    for position in positions:
        name = f"item {position}"
        try:
            example = source[position]
            name = example.name
            content = read(example)
        except (BadImage, OSError) as error:
            left_out.add(source, position, name, error)
            continue
        yield position, name, content


def read_pictures(
    source: Source, positions: Iterable[int], left_out: LeftOut, reading: ImageReading = DEFAULT_READING
) -> Iterator[Picture]:
    """Decode the images at these positions, one at a time. Those that cannot be read are added to `left_out`."""
    for picture in read_examples(source, positions, left_out, lambda example: decode(example.data, reading)):
        yield Picture(*picture)


def names(source: Source, positions: Sequence[int]) -> list[str]:
    """The names of examples, or "item POSITION" for those that cannot be read."""

    def name(position: int) -> str:
        try:
            return source[position].name
        except OSError:
            return f"item {position}"

    return [name(position) for position in positions]


def left_out_note(what: str, listed: Sequence[str], total: int, why: str = "cannot be read") -> str:
    """'2 of 18 gallery images cannot be read and are left out: a.png, b.png'; '' where none is listed.

    >>> left_out_note("gallery images", ["a.png"], 18)
    '1 of 18 gallery images cannot be read and is left out: a.png'
    """
    if not listed:
        return ""
    shown = ", ".join(ascii(name)[1:-1] for name in listed[:_NAMED]) + (", ..." if len(listed) > _NAMED else "")
    return f"{len(listed):,} of {total:,} {what} {why} and {'are' if len(listed) > 1 else 'is'} left out: {shown}"
