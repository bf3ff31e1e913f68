"""What the features of a TensorFlow Datasets set mean here: which is the image, the label, the label map, the objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sere_jax.data.sources.annotation import Annotation, Instance, Size
from sere_jax.data.sources.example import SourceError, nfc

_LABEL_MAPS = ("segmentation", "segmentation_mask", "segmentation_label", "label_map", "mask")
OBJECT_IDS = "object_ids"  # the key of a set's metadata that holds the data set's own numbers of the object classes
MAP_PALETTE = "map_palette"  # that holds the colours of label maps, three numbers for each of theirs
_IMAGE_IDS = ("image_id", "image/id")


class Features(NamedTuple):
    """The names of the features that an example is made of, "" where the set has none, and the names of its classes.

    `objects` are the parts of each object that the set describes: bbox, label and what else `Instance` knows.
    """

    image: str
    label: str
    file_name: str
    label_map: str
    objects: tuple[str, ...]
    frame: str
    image_id: str
    classes: tuple[str, ...]
    map_classes: tuple[str, ...] | None
    object_classes: tuple[str, ...] | None

    @property
    def annotated(self) -> bool:
        """Whether examples have annotations."""
        return bool(self.label_map or self.objects)


def read_features(spec: str, features: Any) -> Features:
    """The features that are used of a set. Raises SourceError where it is not clear which one is the image."""
    import tensorflow_datasets as tfds

    image = _image(spec, features)
    label = "label" if "label" in features and isinstance(features["label"], tfds.features.ClassLabel) else ""
    maps = [name for name in _LABEL_MAPS if name in features and isinstance(features[name], tfds.features.Image)]
    label_map = next((name for name in maps if features[name].shape[-1] == 1), "")
    parts = _object_parts(features)
    names = features["objects"].feature["label"].names if parts and hasattr(features["objects"].feature["label"], "names") else ()
    return Features(
        image,
        label,
        "file_name" if "file_name" in features else "",
        label_map,
        parts,
        "original_size" if "original_size" in features else "",
        next((name for name in _IMAGE_IDS if name in features), ""),
        tuple(map(nfc, features[label].names)) if label else (),
        _map_classes(features[label_map]) if label_map else None,
        tuple(map(nfc, names)) if parts else None,
    )


def _image(spec: str, features: Any) -> str:
    import tensorflow_datasets as tfds

    images = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
    if "image" in images:
        return "image"
    if len(images) != 1:
        raise SourceError(
            f"{spec!r}: expected a feature 'image' or exactly one image feature, found {images or 'none'} in {list(features)}"
        )
    return images[0]


def _object_parts(features: Any) -> tuple[str, ...]:
    """Which parts of `Instance` the feature `objects` has; () where it has no boxes or no labels."""
    import tensorflow_datasets as tfds

    if "objects" not in features:
        return ()
    objects = features["objects"]
    if not isinstance(objects, tfds.features.Sequence) or not isinstance(objects.feature, tfds.features.FeaturesDict):
        return ()
    parts = tuple(name for name in ("bbox", *Instance._fields) if name in objects.feature)
    return parts if {"bbox", "label"} <= set(parts) else ()


def _map_classes(feature: Any) -> tuple[str, ...]:
    names = getattr(feature, "names", None) if getattr(feature, "num_classes", None) else None
    return tuple(map(nfc, names or ()))


def annotation(features: Features, values: Mapping[str, Sequence[Any]]) -> Annotation:
    """The annotation of a record whose values are flat lists: `objects/bbox` has four numbers an object (top, left, bottom, right).

    Boxes are turned from shares of the image into pixels of `original_size` where the record has it.
    """
    label_map = bytes(values[features.label_map][0]) if features.label_map else None
    image_id = int(values[features.image_id][0]) if features.image_id else -1
    if not features.objects:
        return Annotation(label_map, image_id=image_id)
    frame: Size = (1, 1)
    if features.frame:
        height, width = (int(value) for value in values[features.frame])
        frame = (height, width)
    columns = {part: values[f"objects/{part}"] for part in features.objects}
    instances = tuple(_instance(columns, number, frame) for number in range(len(columns["label"])))
    return Annotation(label_map, instances, frame, image_id)


def _instance(columns: Mapping[str, Sequence[Any]], number: int, frame: Size) -> Instance:
    height, width = frame
    top, left, bottom, right = (float(value) for value in columns["bbox"][4 * number : 4 * number + 4])
    segmentation = columns["segmentation"][number] if "segmentation" in columns else b""
    return Instance(
        int(columns["label"][number]),
        (left * width, top * height, right * width, bottom * height),
        id=int(columns["id"][number]) if "id" in columns else number,
        area=float(columns["area"][number]) if "area" in columns else 0.0,
        is_crowd=bool(columns["is_crowd"][number]) if "is_crowd" in columns else False,
        is_difficult=bool(columns["is_difficult"][number]) if "is_difficult" in columns else False,
        segmentation=segmentation.decode() if isinstance(segmentation, bytes) else str(segmentation),
    )
