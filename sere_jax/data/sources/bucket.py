"""Folders and lists of images in a bucket: the same examples and fingerprint as the same files on a disk."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import numpy as np

from sere_jax import buckets
from sere_jax.buckets import Stored
from sere_jax.data.sources.cache import RemoteFiles, current
from sere_jax.data.sources.example import Entry, Example, SourceError, nfc
from sere_jax.data.sources.folder import FolderSource
from sere_jax.data.sources.path_list import PathListSource
from sere_jax.data.sources.walk import Tree, arranged
from sere_jax.writing import place


def objects(spec: str, address: str) -> list[Stored]:
    """The objects below an address. Raises SourceError where the bucket cannot be listed."""
    bucket = "/".join(address.split("/")[:3])
    try:
        return buckets.stored(buckets.location(address))
    except FileNotFoundError as error:
        raise SourceError(f"{spec!r}: there is no bucket {bucket}") from error
    except OSError as error:
        advice = "expected credentials that may list it (gcloud auth application-default login, or a service account)"
        raise SourceError(f"{spec!r}: {bucket} cannot be listed: {error.strerror or error}; {advice}") from error


class _InBucket:
    """How the sources below read their objects."""

    _paths: list[str]
    _labels: np.ndarray
    _files: RemoteFiles

    def __getitem__(self, index: int) -> Example:
        """Fetch one object, or read its kept copy. Raises OSError where that fails, or it has changed since it was listed."""
        return Example(self._paths[index], self._files.read(index), int(self._labels[index]))

    def read_ahead(self, indices: Sequence[int]) -> None:
        """Begin to fetch images that are asked for soon."""
        self._files.read_ahead(indices)


class BucketFolder(_InBucket, FolderSource):
    """`FolderSource` of objects below gs://BUCKET/NAME: the same rules say what is an image, and what its label is.

    Sizes and checksums are those of the store's listing. Raises SourceError where there is no such bucket, or no image.
    """

    def __init__(self, spec: str, address: str) -> None:
        cache = current()
        cache.check(spec)
        self.spec, self.directory = spec, os.fspath(place(address))
        by_name = {item.name: item for item in objects(spec, address)}
        if not by_name:
            raise SourceError(f"{spec!r}: there are no objects below {self.directory}/; expected image files")
        try:
            self._tree = arranged(list(by_name))
        except SourceError as error:
            raise SourceError(f"{spec!r}: {self.directory}/{error}") from error
        self._index(self._tree)
        self._files = RemoteFiles(self.directory, [by_name[path] for path in self._paths], cache)
        self._tree = Tree([], self._tree.others)

    def listing(self) -> Iterator[Entry]:
        """An entry an image."""
        for path, size, label in zip(self._paths, self._files.sizes.tolist(), self._labels.tolist(), strict=True):
            yield Entry(nfc(path), size, label)

    def left_out(self) -> Iterator[str]:
        """The addresses of the objects that are not listed as images."""
        return (f"{self.directory}/{path}" for path in self._tree.others)


class BucketList(_InBucket, PathListSource):
    """`PathListSource` of a list gs://BUCKET/NAME/FILE, whose paths are relative: objects below gs://BUCKET/NAME.

    Raises SourceError where a path leads elsewhere, and where `PathListSource` does.
    """

    def __init__(self, spec: str, file: str) -> None:
        cache = current()
        cache.check(spec)
        self._read(spec, file)
        if outside := [path for path in self._paths if os.path.isabs(path) or ".." in path.split("/") or "://" in path]:
            raise SourceError(f"{spec!r}: found the line {outside[0]!r}, expected paths below the list's own directory, {self._directory}")
        by_name = {item.name: item for item in objects(spec, self._directory)}
        files = [by_name.get(name, Stored(name, -1, -1)) for name in map(os.path.normpath, self._paths)]
        if files[0].size < 0:
            raise SourceError(f"{spec!r}: its first file {self._directory}/{files[0].name} does not exist")
        self._files = RemoteFiles(self._directory, files, cache)

    def _sizes(self) -> Iterator[int]:
        return iter(self._files.sizes.tolist())
