"""The images of another source that have objects to train on."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from sere_jax.data.sources.annotation import Annotation, Instance
from sere_jax.data.sources.example import Entry, Example, Source, SourceError

_log = logging.getLogger(__name__)


class ObjectCounts(NamedTuple):
    """What the annotations of an image say, as a row of `count_objects`.

    Attributes:
      height, width: of the frame that boxes are measured in.
      trainable: objects to train on.
      regions: those of them that have a segmentation.
      others: crowds, difficult objects and empty boxes.
    """

    height: int
    width: int
    trainable: int
    regions: int
    others: int


@runtime_checkable
class Counted(Protocol):
    """A source that knows how many objects each example has, as `count_objects` counts them, without handing out an image."""

    def object_counts(self) -> Int[np.ndarray, "n 5"]: ...


def trainable(instance: Instance) -> bool:
    """Whether an object is trained on: no crowd, none that evaluations leave out, and no empty box."""
    left, top, right, bottom = instance.box
    return not instance.is_crowd and not instance.is_difficult and left < right and top < bottom


def count_objects(annotation: Annotation | None) -> ObjectCounts:
    """The counts of one image. Raises ValueError for an image whose objects are not annotated."""
    if annotation is None or annotation.instances is None or annotation.frame is None:
        raise ValueError("an image without annotated objects")
    used = [instance for instance in annotation.instances if trainable(instance)]
    others = len(annotation.instances) - len(used)
    return ObjectCounts(*annotation.frame, len(used), sum(bool(instance.segmentation) for instance in used), others)


class WithObjects(Source):
    """The examples of `source` that have an object to train on, in its order.

    Args:
      masks: whether the regions of objects are used, so that all objects or none need one.

    Attributes:
      masks: whether all these objects have regions.
      frames: height and width of each image, as its annotation states them.
      objects: how many of these objects each image has.
      without: how many images are left out, because they have no object to train on.
      others: how many objects are not trained on: crowds, difficult ones and empty boxes.

    Raises SourceError where `source` does not annotate objects, no image is left, or, with `masks`, only some objects have regions.
    """

    def __init__(self, source: Source, *, masks: bool = True) -> None:
        if source.object_classes is None:
            raise SourceError(f"{source.spec!r} has no objects; expected a prepared set with a feature 'objects' (docs/data.md)")
        self.spec, self.classes, self.map_classes = source.spec, source.classes, source.map_classes
        self.object_classes, self.object_ids, self.map_palette = source.object_classes, source.object_ids, source.map_palette
        counts = source.object_counts() if isinstance(source, Counted) else counted(source)
        self._source, self._index = source, np.flatnonzero(counts[:, 2] > 0)
        self.without, self.others = int((counts[:, 2] == 0).sum()), int(counts[counts[:, 4] > 0, 4].sum())
        counts = counts[self._index]
        self.frames, self.objects, regions = counts[:, :2], counts[:, 2], counts[:, 3]
        if not len(self._index):
            raise SourceError(f"{self.spec!r}: none of {len(source):,} images has an object to train on")
        lacking = np.flatnonzero(regions < self.objects)
        if masks and regions.any() and lacking.size:
            name = self[int(lacking[0])].name
            raise SourceError(
                f"{self.spec!r}: {len(lacking):,} of {len(self):,} images have objects with and without masks, the first is {name!r}; "
                "expected masks for all objects or for none; masks=False trains boxes alone"
            )
        self.masks = not lacking.size

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> Example:
        return self._source[int(self._index[index])]

    def read_ahead(self, indices: Sequence[int]) -> None:
        """Begin to fetch images that are asked for soon."""
        self._source.read_ahead(self._index[list(indices)].tolist())

    def places(self) -> Iterator[tuple[str, int]]:
        """The places of these images."""
        places = list(self._source.places())
        return (places[index] for index in self._index)

    def notes(self) -> tuple[str, ...]:
        """The notes of the source, and what is left out of training."""
        notes = list(self._source.notes())
        if self.without:
            notes.append(f"{self.without:,} of {len(self._source):,} images have no object to train on and are left out")
        if self.others:
            notes.append(f"{self.others:,} objects are not trained on: crowds, difficult ones and empty boxes")
        return tuple(notes)

    def left_out(self) -> Iterator[str]:
        """The files of the source."""
        return self._source.left_out()

    def listing(self) -> Iterator[Entry]:
        """The entries of the source: which images are left out follows from them."""
        return self._source.listing()


def counted(source: Source) -> Int[np.ndarray, "n 5"]:
    """The counts of every example of a source, each read once; -1, and a line in the log, for one that cannot be read."""
    counts = np.full((len(source), len(ObjectCounts._fields)), -1, np.int32)
    for index in range(len(source)):
        try:
            counts[index] = count_objects(source[index].annotation)
        except OSError as error:
            _log.warning("%s: item %d cannot be read and is left out: %s", source.spec, index, error)
    return counts
