"""A directory of image files as a source: every depth, a deterministic order, labels from the first level of sub-folders."""

from __future__ import annotations

import concurrent.futures
import difflib
import errno
import itertools
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Int

from sere_jax.data.sources.example import Entry, Example, Source, SourceError, chunks, nfc
from sere_jax.data.sources.walk import EXTENSIONS, Tree, count_extensions, walk
from sere_jax.writing import place

MAX_BYTES = 1 << 30
_CHUNK = 1000  # files whose sizes a thread asks for in one go
# Names of splits, without digits, signs and the words of _PARTS: train2017, "Training Set", test_images, valid-split.
_SPLITS = re.compile(r"train(ing|val)?|val(id|idation)?|minival|dev(el)?|eval(uation)?|test(ing)?|holdout|unlabell?ed|extra")
_PARTS = re.compile(r"(set|split|data|images?|imgs?|photos?)$")
_LEVELS = 3  # of directories in which splits are looked for
_ALIKE = 0.7  # share of letters: imagnet is like imagenet (0.93), nope is not like opt (0.57) or snap (0.5)


class FolderSource(Source):
    """Image files under a directory, sorted by path.

    `walk` says which files are listed; `notes` tells how many others there are. When every image lies in a sub-folder,
    the first level of sub-folders gives the labels (sorted names of those that hold images); when every image lies in
    the directory itself there are no labels; images in both places are refused, because labelling some would be a guess.
    """

    def __init__(self, spec: str, directory: str) -> None:
        self.spec = spec
        self.directory = str(place(directory))
        _check_directory(spec, directory, self.directory)
        self._index(list_images(spec, self.directory))

    def _index(self, tree: Tree) -> None:
        """Take paths, classes, labels and notes from what lies below `directory`."""
        spec = self.spec
        self._paths, others = tree
        if not self._paths:
            seen = f"; found {count_extensions(others)}" if others else ""
            raise SourceError(f"{spec!r}: no image files under {self.directory}{seen}, expected one of {' '.join(sorted(EXTENSIONS))}")
        counts = _count_tops(self._paths)
        if (loose := sum(count for top, count in counts if not top)) and (nested := len(self._paths) - loose):
            raise SourceError(
                f"{spec!r}: {loose} images lie in {self.directory} itself and {nested} in its sub-folders; expected all in "
                "sub-folders (they become the labels) or none (no labels). Move the loose ones, or name one sub-folder."
            )
        self.classes = tuple(sorted({top for top, _ in counts} - {""}))
        numbers = {name: number for number, name in enumerate(self.classes)}
        self._labels = np.repeat(np.array([numbers.get(top, -1) for top, _ in counts], np.int32), [count for _, count in counts])
        self._notes = _notes(self.directory, self._paths, others)

    def __len__(self) -> int:
        return len(self._paths)

    def labels(self) -> Int[np.ndarray, " n"]:
        """The class of every image, -1 where there are none."""
        return self._labels

    def __getitem__(self, index: int) -> Example:
        """Read one file. Raises OSError when it has become unreadable since it was listed, or is no plain file."""
        path = self._paths[index]
        return Example(path, read_file(os.path.join(self.directory, path)), int(self._labels[index]))

    def places(self) -> Iterator[tuple[str, int]]:
        """The path of each image."""
        return ((os.path.join(self.directory, path), 0) for path in self._paths)

    def listing(self) -> Iterator[Entry]:
        """An entry an image."""
        start = os.path.join(self.directory, "")
        sizes = file_sizes(start + path for path in self._paths)
        for path, size, label in zip(self._paths, sizes, self._labels.tolist(), strict=True):
            yield Entry(nfc(path.replace(os.sep, "/")), size, label)

    def notes(self) -> tuple[str, ...]:
        """How many files are not read, by extension; and classes that look like the splits of a data set."""
        return self._notes

    def left_out(self) -> Iterator[str]:
        """The full paths of the files below the directory that are not listed as images."""
        return (os.path.join(self.directory, path) for path in list_images(self.spec, self.directory).others)

    def names(self) -> list[str]:
        """The name of each image, in order."""
        return self._paths

    def describe(self, index: int) -> tuple[str, str, int]:
        """Name, path and label of an item, without reading it."""
        path = self._paths[index]
        return path, os.path.join(self.directory, path), int(self._labels[index])


def _count_tops(paths: Iterable[str]) -> list[tuple[str, int]]:
    """The first part of sorted paths, "" for a file without directories, and how many paths in a row have it."""
    groups = itertools.groupby(paths, lambda path: path[: max(path.find(os.sep), 0)])
    return [(nfc(top), sum(1 for _ in group)) for top, group in groups]


def _notes(directory: str, paths: Sequence[str], others: list[str]) -> tuple[str, ...]:
    notes = []
    if others:
        notes.append(not_read(others))
    prefix, splits = _splits(paths)
    if splits:
        classes = "classes" if not prefix else f"folders in {prefix}"
        example = os.path.join(directory, prefix, splits[0])
        notes.append(f"the {classes} are {', '.join(splits)}, which look like splits; expected one of them, as in folder:{example}")
    return tuple(notes)


def not_read(others: list[str]) -> str:
    """The note on files of other kinds among images."""
    return f"{len(others):,} files are not read as images: {count_extensions(others)}"


def _splits(paths: Sequence[str]) -> tuple[str, list[str]]:
    """(the folder that holds all images, the names of the folders in it) where these look like splits, such as train and val."""
    prefix = ""
    for _ in range(_LEVELS):
        start = len(prefix) + 1 if prefix else 0
        names = {path[start:].partition(os.sep)[0] if os.sep in path[start:] else "" for path in paths}
        if all(map(_is_split, names)):
            return prefix, sorted(map(nfc, names))
        if len(names) > 1 or "" in names:
            break
        prefix = os.path.join(prefix, names.pop())
    return "", []


def _is_split(name: str) -> bool:
    letters = re.sub(r"[\W\d_]", "", name.lower())
    while (shorter := _PARTS.sub("", letters)) not in ("", letters):
        letters = shorter
    return _SPLITS.fullmatch(letters) is not None


def read_file(path: str) -> bytes:
    """The bytes of a plain file of at most MAX_BYTES. Raises OSError for anything else: a pipe would block, a device never end."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a plain file", path)
        if status.st_size > MAX_BYTES:
            raise OSError(errno.EFBIG, f"{status.st_size} bytes are more than an image may have ({MAX_BYTES})", path)
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def file_sizes(paths: Iterable[str]) -> Iterator[int]:
    """The size of each file in bytes, -1 where there is none. Several threads ask, because network file systems are slow."""

    def ask(chunk: tuple[str, ...]) -> list[int]:
        return [_size(path) for path in chunk]

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        for sizes in threads.map(ask, chunks(paths, _CHUNK)):
            yield from sizes


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except (OSError, ValueError):  # ValueError: a name with a NUL, which no file has
        return -1


def list_images(spec: str, root: str) -> Tree:
    """`walk`, for the source `spec`. Raises SourceError where it raises OSError: another machine might list more images."""
    try:
        return walk(root)
    except SourceError as error:
        raise SourceError(f"{spec!r}: {error}") from error
    except OSError as error:
        where = f"{ascii(error.filename)[:200]} cannot be listed: {error.strerror}"
        raise SourceError(f"{spec!r}: {where}. Make it readable, hide it with a leading dot, or name a sub-folder.") from error


def _check_directory(spec: str, written: str, directory: str) -> None:
    if not written:
        raise SourceError(f"{spec!r} names no directory; expected folder:DIR")
    if os.path.isdir(directory):
        return
    if os.path.exists(directory):
        raise SourceError(f"{spec!r}: {directory} is a file, not a directory; expected a directory of image files")
    parent, near = _existing(directory)[0], nearest_directory(directory)
    hint = f"; did you mean {near}?" if near else ""
    raise SourceError(f"{spec!r}: {directory} does not exist (the nearest directory that does is {parent}){hint}")


def nearest_directory(directory: str) -> str:
    """The existing directory most like one that does not exist; "" where none is alike.

    The first missing part of the path is replaced by the most similar sibling; the parts below it follow where they exist.
    """
    parent, missing, rest = _existing(str(place(directory)))
    try:
        siblings = sorted(entry.name for entry in os.scandir(parent) if os.path.isdir(entry) and not entry.name.startswith("."))
    except OSError:  # a directory that may be entered but not listed
        return ""
    near = difflib.get_close_matches(missing, siblings, n=1, cutoff=_ALIKE)
    sibling = os.path.join(parent, near[0]) if near else ""
    return os.path.join(sibling, rest) if rest and os.path.isdir(os.path.join(sibling, rest)) else sibling


def _existing(directory: str) -> tuple[str, str, str]:
    """The deepest directory on the way that exists, the name that is missing in it, and the path below that name."""
    parent, missing = os.path.split(directory)
    rest = ""
    while not os.path.isdir(parent):
        rest = os.path.join(missing, rest) if rest else missing
        parent, missing = os.path.split(parent)
    return parent, missing, rest
