"""Images of up to three objects, each painted in a colour channel of its own, with annotations that fit."""

from __future__ import annotations

import dataclasses
import json

import numpy as np

from sere_jax.data.annotations.regions import encode_region
from sere_jax.data.sources.annotation import Annotation, Instance
from sere_jax.data.sources.example import Example, Source
from tests.data.images.images import encode


def scene(seed, height, width, objects=3):
    """An image that is 255 in channel i where object i is, and its objects: ellipses, which may lie on each other and reach outside."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    image, annotated = np.zeros((height, width, 3), np.uint8), []
    for label in range(objects):
        y, x = rng.uniform(0, height), rng.uniform(0, width)
        down, across = rng.uniform(0.1, 0.4) * height, rng.uniform(0.1, 0.4) * width
        mask = ((rows - y) / down) ** 2 + ((columns - x) / across) ** 2 < 1
        image[mask, label] = 255
        annotated.append(instance(mask, label))
    return image, tuple(annotated)


def instance(mask, label, **fields):
    """An object of a mask, with the box around it."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
    values = {"id": label + 1, "area": float(mask.sum()), "segmentation": json.dumps(encode_region(mask))}
    return Instance(label, box, **(values | fields))


@dataclasses.dataclass
class Painted(Source):
    """Scenes of several shapes.

    `without` have no objects, `damaged` are no images, `lost` cannot be read at all, `crowds` have one more object that is a crowd.
    """

    count: int = 12
    without: tuple[int, ...] = ()
    damaged: tuple[int, ...] = ()
    lost: tuple[int, ...] = ()
    crowds: tuple[int, ...] = ()
    boxes_alone: tuple[int, ...] = ()
    spec: str = "painted"
    classes: tuple[str, ...] = ()
    map_classes: tuple[str, ...] | None = None
    object_classes: tuple[str, ...] | None = ("one", "two", "three")
    object_ids: tuple[int, ...] = (3, 5, 9)

    def __len__(self):
        return self.count

    def shape(self, index):
        return (40 + index, 60) if index % 3 else (60, 40 + index)

    def __getitem__(self, index):
        if index in self.lost:
            raise OSError(f"record {index} is damaged")
        image, objects = scene(index, *self.shape(index))
        if index in self.crowds:
            objects = (*objects, instance(np.ones(self.shape(index), bool), 0, is_crowd=True, id=9))
        if index in self.boxes_alone:
            objects = tuple(one._replace(segmentation="") for one in objects)
        data = encode(image)
        annotation = Annotation(None, () if index in self.without else objects, self.shape(index), 100 + index)
        return Example(f"{index}.png", data[:60] if index in self.damaged else data, -1, annotation)

    def listing(self):
        return iter(())
