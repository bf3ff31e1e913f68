"""Some classes of another source, named by a list: ImageNet-S300 out of ImageNet, for one."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from sere_jax.data.sources.example import Entry, Example, Fingerprint, Source, SourceError, nfc
from sere_jax.data.sources.lists import read_names


@runtime_checkable
class Labelled(Protocol):
    """A source that knows all its labels without handing out an image."""

    def labels(self) -> Int[np.ndarray, " n"]: ...


class ClassSubset(Source):
    """The examples of `source` whose class stands in a text file, one name a line; labels count in the file's order.

    The whole line is the name, so that names may hold blanks; `read_lines` says which lines are comments. Raises SourceError where the
    file cannot be read, names a class twice or one that the source does not have, or no example is left.
    """

    def __init__(self, spec: str, file: str, source: Source) -> None:
        self.spec = spec
        self.classes = tuple(map(nfc, read_names(spec, file)))
        if not source.classes or not isinstance(source, Labelled):
            raise SourceError(f"{spec!r}: {source.spec!r} has no classes to choose from")
        _check(spec, file, self.classes, source.classes)
        place = {name: number for number, name in enumerate(source.classes)}
        numbers = {place[name]: number for number, name in enumerate(self.classes)}
        table = np.full(len(source.classes), -1, np.int32)
        table[list(numbers)] = list(numbers.values())
        self.map_classes, self.map_palette = source.map_classes, source.map_palette
        self.object_classes, self.object_ids = source.object_classes, source.object_ids
        before = source.labels()
        labels = np.where(before >= 0, table[before], -1)
        self._source, self._index, self._labels = source, np.flatnonzero(labels >= 0), labels[labels >= 0]
        if not len(self._index):
            raise SourceError(f"{spec!r}: {source.spec!r} has no image of the {len(self.classes)} classes in {file}")

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> Example:
        return self._source[int(self._index[index])]._replace(label=int(self._labels[index]))

    def read_ahead(self, indices: Sequence[int]) -> None:
        """Begin to fetch images that are asked for soon."""
        self._source.read_ahead(self._index[list(indices)].tolist())

    def labels(self) -> Int[np.ndarray, " n"]:
        """The class of every example."""
        return self._labels

    def places(self) -> Iterator[tuple[str, int]]:
        """The places of the images that belong to a listed class."""
        places = list(self._source.places())
        return (places[index] for index in self._index)

    def notes(self) -> tuple[str, ...]:
        """The notes of the source."""
        return self._source.notes()

    def left_out(self) -> Iterator[str]:
        """The files of the source."""
        return self._source.left_out()

    def listing(self) -> Iterator[Entry]:
        """The entries of the images that belong to a listed class; of a source of packed files all entries, and one of which they are.

        A packed image whose class cannot be read belongs to no class, so the same files may hold fewer examples on another machine.
        """
        entries = list(self._source.listing())
        if len(entries) != len(self._source):
            yield from entries
            yield Entry(f"positions {hashlib.sha256(self._index.astype(np.int64).tobytes()).hexdigest()[:16]}", len(self._index), -1)
            return
        for index, label in zip(self._index, self._labels, strict=True):
            yield entries[index]._replace(label=int(label))


class Selection(Source):
    """The examples of `source` at some positions, in their order, with their labels: a part of a data set that is held out, or the rest."""

    def __init__(self, source: Source, positions: Int[np.ndarray, " n"]) -> None:
        self.spec, self.classes = source.spec, source.classes
        self.map_classes, self.map_palette = source.map_classes, source.map_palette
        self.object_classes, self.object_ids = source.object_classes, source.object_ids
        self._source, self._positions = source, positions

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> Example:
        return self._source[int(self._positions[index])]

    def read_ahead(self, indices: Sequence[int]) -> None:
        """Begin to fetch images that are asked for soon."""
        self._source.read_ahead(self._positions[list(indices)].tolist())

    def places(self) -> Iterator[tuple[str, int]]:
        """The places of the selected examples."""
        places = list(self._source.places())
        return (places[position] for position in self._positions)

    def listing(self) -> Iterator[Entry]:
        """The entries of the selected examples; of a source of packed files all entries."""
        entries = list(self._source.listing())
        return iter(entries) if len(entries) != len(self._source) else (entries[position] for position in self._positions)

    def fingerprint(self) -> Fingerprint:
        """That of the entries and of the positions: two parts of packed files have the same entries."""
        whole = super().fingerprint()
        positions = np.ascontiguousarray(self._positions, np.int64).tobytes()
        return Fingerprint(whole.count, hashlib.sha256(whole.digest.encode() + positions).hexdigest())


def _check(spec: str, file: str, wanted: tuple[str, ...], known: tuple[str, ...]) -> None:
    names = set(known)
    unknown = [name for name in wanted if name not in names]
    if not unknown:
        return
    near = difflib.get_close_matches(unknown[0], known, n=1)
    hint = f"; nearest to {unknown[0]}: {near[0]}" if near else f"; it has {', '.join(known[:3])} ..."
    if all(name.split()[0] in names for name in unknown):
        hint = f"; their first words are classes, the whole line is taken as a name: cut -d ' ' -f 1 {file}"
    raise SourceError(f"{spec!r}: {file} names {len(unknown)} classes that the source does not have: {', '.join(unknown[:5])}{hint}")
