"""What a data set on disk is made of: records that know where their image, label map and boxes are, in named splits."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from sere_jax.data.annotations.maps import Coding, palette_of
from sere_jax.data.sources.annotation import Instance, Size
from sere_jax.data.sources.example import Source, SourceError, nfc
from sere_jax.data.sources.folder import FolderSource, read_file
from sere_jax.data.sources.lists import read_names


class Bytes(Protocol):
    """Something that can be read: a file, a part of an archive, an item of a source. Raises OSError where it cannot."""

    def read(self) -> bytes: ...


class Place(NamedTuple):
    """A file, or `size` bytes of it from `offset` on."""

    path: str
    offset: int = 0
    size: int = -1

    def read(self) -> bytes:
        if self.size < 0:
            return read_file(self.path)
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            data = file.read(self.size)
        if len(data) < self.size:
            raise OSError(f"{self.path} ends before byte {self.offset + self.size}")
        return data


class InMemory(NamedTuple):
    """Bytes that have been read."""

    data: bytes

    def read(self) -> bytes:
        return self.data


class Record(NamedTuple):
    """One image and what is known of it.

    `label_map` is an image whose pixels are class numbers. Boxes and segmentations of `instances` are in pixels of an image of `frame`
    (height, width), the image itself where that is None.
    """

    name: str
    image: Bytes
    label: int = -1
    label_map: Bytes | None = None
    instances: tuple[Instance, ...] = ()
    frame: Size | None = None
    id: int = -1


@dataclasses.dataclass(frozen=True)
class Layout:
    """A data set: `classes` are the names of images' labels, `object_classes` those of objects' labels, `map_classes` those of pixels.

    The latter two are None where the data set does not annotate these, and () where the names are not known. `object_ids` are the
    numbers that the data set itself gives the object classes, () where it gives none. `map_coding` says how its label maps store a class.
    """

    name: str
    splits: Mapping[str, Sequence[Record]]
    classes: tuple[str, ...] = ()
    object_classes: tuple[str, ...] | None = None
    object_ids: tuple[int, ...] = ()
    map_classes: tuple[str, ...] | None = None
    map_coding: Coding = "index"
    has_ids: bool = False

    def fields(self) -> dict[str, Any]:
        """What decides how a record is written, besides the record."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "splits"}


class SourceRecords(Sequence[Record]):
    """The items of an open source, each read when asked for."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: Any) -> Any:
        name, data, label, annotation = self.source[index]
        if annotation is None:
            return Record(name, InMemory(data), label)
        label_map = None if annotation.label_map is None else InMemory(annotation.label_map)
        return Record(name, InMemory(data), label, label_map, annotation.instances or (), annotation.frame, annotation.image_id)


def map_palette(layout: Layout) -> bytes:
    """The colours of a layout's label maps: those of an open source, else of the first label map of a split that has some."""
    for records in layout.splits.values():
        if isinstance(records, SourceRecords):
            return records.source.map_palette
        with contextlib.suppress(OSError):  # the image is left out when its turn comes
            first = next((record.label_map for record in records if record.label_map is not None), None)
            if first is not None and layout.map_coding == "index" and (palette := palette_of(first.read())):
                return palette
    return b""


def from_source(source: Source, name: str, split: str) -> Layout:
    """A source that training can read, as a layout of one split. Only of a folder names are known without reading."""
    if isinstance(source, FolderSource):
        described = (source.describe(index) for index in range(len(source)))
        return Layout(name, {split: [Record(path, Place(full), label) for path, full, label in described]}, source.classes)
    records = SourceRecords(source)
    return Layout(
        name,
        {split: records},
        source.classes,
        object_classes=source.object_classes,
        object_ids=source.object_ids,
        map_classes=source.map_classes,
    )


def subset(layout: Layout, *, classes: str = "", images: str = "") -> Layout:
    """Only the classes and images that the files of these names list, one a line; labels become positions in the list of classes.

    An image is listed by its name, its file name, or either without the ending, as in SimCLR's lists of 1 % and 10 % of ImageNet. Raises
    SourceError when a line fits nothing: a list of another data set.
    """
    splits = layout.splits
    names = layout.classes
    if classes:
        wanted = [nfc(name) for name in read_names(classes, classes)]
        unknown = [name for name in wanted if name not in names]
        if unknown:
            raise SourceError(f"{classes}: {len(unknown)} of {len(wanted)} classes are unknown, the first is {unknown[0]!r}")
        new = {names.index(name): number for number, name in enumerate(wanted)}
        splits = {key: [r._replace(label=new[r.label]) for r in records if r.label in new] for key, records in splits.items()}
        names = tuple(wanted)
    if images:
        listed = read_names(images, images)
        counts = collections.Counter(listed)
        splits = {key: [r for r in records if any(word in counts for word in _spellings(r.name))] for key, records in splits.items()}
        known = {word for records in splits.values() for r in records for word in _spellings(r.name)}
        missing = [name for name in listed if name not in known]
        if missing:
            raise SourceError(f"{images}: {len(missing)} of {len(listed)} images are unknown, the first is {missing[0]!r}")
    splits = {key: records for key, records in splits.items() if records}
    if not splits:
        raise SourceError(f"{classes or images}: nothing is left of {layout.name}")
    return dataclasses.replace(layout, splits=splits, classes=names)


def _spellings(name: str) -> Iterable[str]:
    file = os.path.basename(name)
    return (name, os.path.splitext(name)[0], file, os.path.splitext(file)[0])
