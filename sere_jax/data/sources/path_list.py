"""Image files named by a text file, one path a line, as a source."""

from __future__ import annotations

import collections
import os
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int

from sere_jax.data.sources.example import Entry, Example, Source, SourceError, nfc
from sere_jax.data.sources.folder import file_sizes, read_file
from sere_jax.data.sources.lists import read_lines
from sere_jax.writing import place


class PathListSource(Source):
    """The files that a list names, in its order. A relative path starts at the list's own directory.

    A line is a path, or a path, a tab and the name of its class; all lines have one or none has. `read_lines` says which
    lines are comments. Names need not be UTF-8 nor end in a known extension. Whether the files exist is found when they are read (a
    list may name millions), but for the first. Raises SourceError: no such list, nothing in it, a path twice, classes for some.
    """

    def __init__(self, spec: str, file: str) -> None:
        self._read(spec, file)
        first = os.path.join(self._directory, self._paths[0])
        if not os.path.lexists(first):
            raise SourceError(f"{spec!r}: its first file {first!r} does not exist; relative paths start at the list's directory")

    def _read(self, spec: str, file: str) -> None:
        self.spec = spec
        self._paths, names = _read(spec, file)
        self._directory = str(place(file).parent)
        self.classes = tuple(sorted(set(names)))
        numbers = {name: number for number, name in enumerate(self.classes)}
        self._labels = np.array([numbers[name] for name in names] or np.full(len(self._paths), -1), np.int32)

    def __len__(self) -> int:
        return len(self._paths)

    def names(self) -> list[str]:
        """The name of each image, in order."""
        return self._paths

    def labels(self) -> Int[np.ndarray, " n"]:
        """The class of every file, -1 where there are none."""
        return self._labels

    def __getitem__(self, index: int) -> Example:
        """Read one file. Raises OSError when it cannot be read, or is no plain file."""
        path = self._paths[index]
        return Example(path, read_file(os.path.join(self._directory, path)), int(self._labels[index]))

    def places(self) -> Iterator[tuple[str, int]]:
        """The path of each file."""
        return ((os.path.join(self._directory, path), 0) for path in self._paths)

    def listing(self) -> Iterator[Entry]:
        """An entry a file, by its path in the list; absolute paths count from the deepest directory that holds all of them."""
        directories = [os.path.dirname(path) for path in self._paths if os.path.isabs(path)]
        shared = os.path.commonpath(directories) if directories else ""
        for path, size, label in zip(self._paths, self._sizes(), self._labels.tolist(), strict=True):
            name = os.path.relpath(path, shared) if os.path.isabs(path) else path
            yield Entry(nfc(name.replace(os.sep, "/")), size, label)

    def _sizes(self) -> Iterator[int]:
        return file_sizes(os.path.join(self._directory, path) for path in self._paths)


def _read(spec: str, file: str) -> tuple[list[str], list[str]]:
    """The paths of a list and the names of their classes, [] where there are none."""
    rows = [line.split("\t") for line in read_lines(spec, file)]
    if not rows:
        raise SourceError(f"{spec!r}: {file} names no file; expected a path a line")
    if wrong := [row for row in rows if len(row) > 2 or not all(part.strip() for part in row)]:
        raise SourceError(f"{spec!r}: found the line {wrong[0]!r}, expected a path, or a path, a tab and a class")
    labelled = sum(len(row) == 2 for row in rows)
    if labelled not in (0, len(rows)):
        raise SourceError(f"{spec!r}: {labelled} of {len(rows)} lines have a class; expected all or none")
    directory = str(place(file).parent)
    paths = [_existing(spec, directory, row[0]) for row in rows]
    if len(set(map(os.path.normpath, paths))) < len(paths):
        counts = collections.Counter(map(os.path.normpath, paths))
        repeated = next(path for path in paths if counts[os.path.normpath(path)] > 1)
        raise SourceError(f"{spec!r}: {file} names {repeated!r} more than once")
    return paths, [nfc(row[1].strip()) for row in rows] if labelled else []


def _existing(spec: str, directory: str, path: str) -> str:
    """A path without blanks at its ends, unless a file has them in its name."""
    if path != path.strip() and not os.path.lexists(os.path.join(directory, path)):
        path = path.strip()
    if path.startswith("#") and not os.path.lexists(os.path.join(directory, path)):
        raise SourceError(f"{spec!r}: found the line {path!r}, and no such file; a comment begins with '# ', with a blank")
    return path
