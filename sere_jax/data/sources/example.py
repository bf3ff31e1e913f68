"""What every data source hands out: encoded images with a name and, where the source knows it, a label."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable


class SourceError(ValueError):
    """A source that cannot be opened. The message names what was asked for, what was found, and what to do."""


class BadImage(ValueError):
    """Bytes that cannot be made into pixels: no image, damaged, cut short, or larger than the cap."""


class Example(NamedTuple):
    """One image as it is stored: `data` are the bytes of an image file, not pixels. `label` is -1 where there is none."""

    name: str
    data: bytes
    label: int


@runtime_checkable
class Source(Protocol):
    """Random access to encoded images. Picklable, because worker processes get a copy.

    `spec` is the text that the source was opened with; `classes[label]` is the name of a label, and `classes` is empty
    when the source has no labels.
    """

    spec: str
    classes: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...
