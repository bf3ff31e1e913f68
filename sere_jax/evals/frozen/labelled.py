"""A labelled gallery and query set with common class numbers, and the images that are in both."""

from __future__ import annotations

import difflib
import itertools
import os
from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from sere_jax.data.sources.example import Source, nfc
from sere_jax.data.sources.open import open_source
from sere_jax.evals.network import EvalError

_CHUNK = 1000  # files whose identity a thread looks up at a time
_LISTED = 5  # names of classes that a message lists


class LabelledPair(NamedTuple):
    """Two labelled sources for a k-NN.

    The classes are the gallery's, sorted. Names are compared in Unicode's composed form (NFC), in which the two ways to
    write an accent are equal.
    """

    gallery: Source
    query: Source
    classes: tuple[str, ...]
    gallery_numbers: Int[np.ndarray, " g"]  # the source's label -> number of the class
    query_numbers: Int[np.ndarray, " q"]
    images: tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"]]  # see `image_numbers`


def open_labelled(gallery: str, query: str, keys: tuple[str, str] = ("gallery", "query")) -> LabelledPair:
    """Open two labelled sources. The classes of the query set must be among those of the gallery.

    `keys` are the names of their settings in messages: ("train", "test") where a classifier is fitted.

    Raises EvalError for a source without labels and for classes that only the query has; SourceError as `open_source` does.
    """
    sources = _open(keys[0], gallery), _open(keys[1], query)
    names = [[nfc(name) for name in source.classes] for source in sources]
    classes = tuple(sorted(set(names[0])))
    if unknown := sorted(set(names[1]) - set(classes)):
        near = difflib.get_close_matches(unknown[0], classes, n=1)
        listed = ", ".join(unknown[:_LISTED]) + (", ..." if len(unknown) > _LISTED else "")
        raise EvalError(
            f"{keys[1]}: found {len(unknown)} classes in {query!r} that {gallery!r} does not have ({listed}); expected some of the "
            f"{len(classes)} classes of {keys[0]}{f', nearest to {unknown[0]}: {near[0]}' if near else ''}. An image of such a class can "
            f"never be recognised: add it to {keys[0]}, or choose classes of {keys[1]} with classes:LIST:SOURCE"
        )
    numbers = {name: number for number, name in enumerate(classes)}
    tables = [np.array([numbers[name] for name in class_names], np.int32) for class_names in names]
    return LabelledPair(*sources, classes, tables[0], tables[1], image_numbers(*sources))


def _open(key: str, spec: str) -> Source:
    if not spec:
        bundled = "bundled:query" if key in ("query", "test") else "bundled:gallery"
        raise EvalError(f"{key}: found nothing, expected {bundled}, folder:DIR or tfds:NAME:SPLIT")
    source = open_source(spec)
    if not source.classes:
        raise EvalError(
            f"{key}: {spec!r} has no labels; expected a source with classes, or --config=configs/eval/retrieval.py, which needs none"
        )
    return source


def image_numbers(gallery: Source, query: Source) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"]]:
    """A number for the image at each position of both sources. Equal numbers are the same record of the same file.

    A link to a file has its number; a copy of the file has another one.
    """
    numbers: dict[Hashable, int] = {}
    gallery_numbers, query_numbers = (
        np.array([numbers.setdefault(identity, len(numbers)) for identity in _identities(source)], np.int32) for source in (gallery, query)
    )
    return gallery_numbers, query_numbers


def _identities(source: Source) -> Iterator[Hashable]:
    """(identity of the file, number of the record in it) of every example."""
    places = list(source.places())
    files = list(dict.fromkeys(path for path, _ in places))
    with ThreadPoolExecutor(8) as threads:  # network file systems answer slowly
        answers = threads.map(_file_identities, [files[start : start + _CHUNK] for start in range(0, len(files), _CHUNK)])
        identity = dict(zip(files, itertools.chain.from_iterable(answers), strict=True))
    return ((identity[path], record) for path, record in places)


def _file_identities(paths: Sequence[str]) -> list[Hashable]:
    return [_file_identity(path) for path in paths]


def _file_identity(path: str) -> Hashable:
    """Device and inode, which are equal for a file and all links to it; the path if there is no such file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a name with a NUL
        return path
    return status.st_dev, status.st_ino
