"""A folder or list of images whose label maps lie in another folder under the same names."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int

from sere_jax.data.annotations.maps import palette_of
from sere_jax.data.sources.annotation import Annotation
from sere_jax.data.sources.example import Entry, Example, Source, SourceError, nfc
from sere_jax.data.sources.folder import FolderSource, file_sizes, read_file
from sere_jax.data.sources.lists import read_names
from sere_jax.data.sources.path_list import PathListSource
from sere_jax.writing import place

CLASSES = "classes.txt"


class MaskedSource(Source):
    """The images of a folder or list; the image NAME.EXTENSION has the label map DIR/NAME.png.

    `DIR/classes.txt`, where it exists, names the values of the label maps from 0 on, one a line. Raises SourceError where DIR does not
    exist, an image has no label map there, or the images are of another kind of source.
    """

    def __init__(self, spec: str, directory: str, source: Source) -> None:
        if not isinstance(source, FolderSource | PathListSource):
            raise SourceError(
                f"{spec!r}: expected masks:DIR:folder:IMAGES or masks:DIR:list:FILE; other sources carry label maps themselves"
            )
        self.spec, self.classes = spec, source.classes
        self._source = source
        self._directory = str(place(directory))
        if not os.path.isdir(self._directory):
            raise SourceError(f"{spec!r}: {self._directory} does not exist; expected the directory of the label maps")
        missing = [self._map(name) for name in source.names() if not os.path.isfile(self._map(name))]
        if missing:
            raise SourceError(
                f"{spec!r}: {len(missing)} of {len(source)} images have no label map, the first misses {missing[0]!r}; "
                "expected one for each, or a list:FILE of the images that have one"
            )
        self.map_palette = self._palette()
        names = os.path.join(self._directory, CLASSES)
        self.map_classes = tuple(map(nfc, read_names(spec, names))) if os.path.isfile(names) else ()

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        """Read an image and its label map. Raises OSError when either cannot be read."""
        example = self._source[index]
        return example._replace(annotation=Annotation(read_file(self._map(example.name))))

    def read_ahead(self, indices: Sequence[int]) -> None:
        """Begin to fetch images that are asked for soon."""
        self._source.read_ahead(indices)

    def labels(self) -> Int[np.ndarray, " n"]:
        """The class of every image, -1 where there are none."""
        return self._source.labels()

    def notes(self) -> tuple[str, ...]:
        """The notes on the images."""
        return self._source.notes()

    def left_out(self) -> Iterator[str]:
        """The files that lie among the images and are not read."""
        return self._source.left_out()

    def places(self) -> Iterator[tuple[str, int]]:
        """The places of the images."""
        return self._source.places()

    def listing(self) -> Iterator[Entry]:
        """The entries of the images, with the sizes of their label maps."""
        sizes = file_sizes(self._map(name) for name in self._source.names())
        for entry, size in zip(self._source.listing(), sizes, strict=True):
            yield entry._replace(annotation_size=size)

    def _palette(self) -> bytes:
        """The colours of the first label map."""
        name = next(iter(self._source.names()), None)
        try:
            return palette_of(read_file(self._map(name))) if name is not None else b""
        except OSError:
            return b""  # the image is told to be unreadable when its turn comes

    def _map(self, name: str) -> str:
        return os.path.join(self._directory, os.path.splitext(name)[0] + ".png")
