"""What every data source returns: encoded images with a name and, where the source has one, a label."""

from __future__ import annotations

import hashlib
import itertools
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

from sere_jax.data.sources.annotation import Annotation

ItemT = TypeVar("ItemT")


class SourceError(ValueError):
    """A source that cannot be opened. The message names what was asked for, what was found, and what to do."""


class BadImage(ValueError):
    """Bytes that cannot be made into pixels: no image, damaged, cut short, or larger than the cap."""


class Example(NamedTuple):
    """One image as it is stored, and what is known of it.

    Attributes:
      name: the path below the source's directory, or what else names the image.
      data: the bytes of an image file, not pixels.
      label: the class, a position in the source's `classes`; -1 where there is none.
      annotation: classes of pixels and objects, not decoded; None where the source has neither.
    """

    name: str
    data: bytes
    label: int
    annotation: Annotation | None = None


class Entry(NamedTuple):
    """One line of a source's listing: an image that was not read, or a file of many images.

    `name` does not say where the source lies. `size` is in bytes, -1 where the file is missing. `label` is -1 where there is none.
    `annotation_size` is the size in bytes of the file that holds the image's annotation, -1 where there is none.
    """

    name: str
    size: int
    label: int
    annotation_size: int = -1


class Fingerprint(NamedTuple):
    """What tells two states of a source apart: the number of its examples, and the SHA-256 of its listing in hexadecimal."""

    count: int  # type: ignore[assignment]  # hides tuple.count
    digest: str


@runtime_checkable
class Source(Protocol):
    """Random access to encoded images. Picklable, because worker processes get a copy.

    `spec` is the text that the source was opened with. `classes[label]` is the name of a label in NFC; `classes` is empty
    when the source has no labels. `map_classes` names the values of label maps and `object_classes` the labels of instances: None where
    the source has no such annotations, () where it does not know their names. `object_ids` are the numbers that the data set itself gives
    the object classes, which its result files name: () where there are none. `map_palette` are the colours of the numbers of label maps, as
    `maps.palette_of` gives them: b"" where the maps have none. Sources inherit from this class, and with it the methods
    that it implements.
    """

    spec: str
    classes: tuple[str, ...]
    map_classes: tuple[str, ...] | None = None
    object_classes: tuple[str, ...] | None = None
    object_ids: tuple[int, ...] = ()
    map_palette: bytes = b""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def listing(self) -> Iterator[Entry]:
        """What the source consists of, in order, without reading any image: an entry an image, or an entry a file of many images.

        The same files give the same entries wherever they lie. The size of each file is asked of the file system at every call.
        """
        ...

    def places(self) -> Iterator[tuple[str, int]]:
        """Where each example lies: path of the file, and number of the example in it (0 in a file of one image).

        By default the text of the source stands for the file.
        """
        return ((self.spec, number) for number in range(len(self)))

    def read_ahead(self, indices: Sequence[int]) -> None:
        """Say which examples are asked for next. Sources that are far away begin to fetch them; by default nothing happens."""
        return

    def notes(self) -> tuple[str, ...]:
        """Sentences on what a user should know of the data, such as files that are not read; `open_source` logs them."""
        return ()

    def left_out(self) -> Iterator[str]:
        """The full paths of files that lie among the images and are not read."""
        return iter(())

    def fingerprint(self) -> Fingerprint:
        """Number of examples and digest of the listing and of all class names: equal for the same files at another path."""
        return fingerprint(len(self), self.listing(), self.class_names())

    def class_names(self) -> tuple[str, ...]:
        """The names of its classes: of images, then of label maps, then of objects."""
        return (*self.classes, *(self.map_classes or ()), *(self.object_classes or ()))


def fingerprint(count: int, entries: Iterable[Entry], classes: Iterable[str]) -> Fingerprint:
    """The fingerprint of `count` examples with these entries and names of classes.

    To use the entries as well: `fingerprint(len(source), entries := list(source.listing()), source.class_names())`.

    >>> fingerprint(1, [Entry("cat/1.jpg", 2048, 0)], ["cat"]) == fingerprint(1, [Entry("cat/1.jpg", 2049, 0)], ["cat"])
    False
    """
    digest = hashlib.sha256()
    for name in classes:
        digest.update(f"{nfc(name)}\0".encode(errors="surrogateescape"))
    for chunk in chunks(entries):
        text = "".join([f"\n{name}\0[{size}, {label}, {annotation}]" for name, size, label, annotation in chunk])
        digest.update(text.encode(errors="surrogateescape"))
    return Fingerprint(count, digest.hexdigest())


def chunks(items: Iterable[ItemT], size: int = 1000) -> Iterator[tuple[ItemT, ...]]:
    """The items in tuples of `size`, the last one shorter.

    >>> list(chunks("abcde", 2))
    [('a', 'b'), ('c', 'd'), ('e',)]
    """
    remaining = iter(items)
    return iter(lambda: tuple(itertools.islice(remaining, size)), ())


def nfc(name: str) -> str:
    """A name in Unicode's composed form (NFC), in which names of files and classes are compared.

    Some file systems of macOS store decomposed names: an e and an accent where other systems have one letter.

    >>> nfc("cafe\u0301") == "caf\u00e9"
    True
    """
    return name if name.isascii() else unicodedata.normalize("NFC", name)
