"""Average precision of boxes and masks by COCO's rules, computed by faster-coco-eval."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from sere_jax.data.sources.annotation import Annotation
from sere_jax.evals.network import EvalError

Kind = Literal["bbox", "segm"]
KINDS: tuple[Kind, ...] = ("bbox", "segm")
THRESHOLDS = np.linspace(0.5, 0.95, 10)  # of the IoU
RECALLS = np.linspace(0.0, 1.0, 101)
_RANGES = ("all", "small", "medium", "large")  # areas up to 32^2, up to 96^2 and larger


class Precision(NamedTuple):
    """Precision at the ten `THRESHOLDS` and the 101 `RECALLS`, by class (NaN for a class without objects) and range of areas."""

    values: Float[np.ndarray, "t r c a"]

    def scores(self) -> dict[str, float]:
        """Shares in [0, 1]: `ap` (mean over the thresholds), `ap50`, `ap75`, `ap_small`, `ap_medium`, `ap_large`.

        A range of areas in which no class has an object has no score.
        """
        parts = {"ap": self.values[..., 0], "ap50": self.values[0, ..., 0], "ap75": self.values[5, ..., 0]}
        parts |= {f"ap_{name}": self.values[..., number] for number, name in enumerate(_RANGES) if number}
        return {name: float(np.nanmean(part)) for name, part in parts.items() if not np.isnan(part).all()}

    def of_classes(self) -> Float[np.ndarray, "c 3"]:
        """AP, AP50 and AP75 of each class, NaN for a class without objects."""
        values = self.values[..., 0]
        return np.stack([values.mean(axis=(0, 1)), values[0].mean(axis=0), values[5].mean(axis=0)], axis=-1)

    def curves(self) -> Float[np.ndarray, "t r"]:
        """Precision over recall at each threshold, the mean over the classes with objects."""
        values = self.values[..., 0]
        return np.nanmean(values[:, :, ~np.isnan(values[0, 0])], axis=2)


class Truth(NamedTuple):
    """The annotated objects of a test set.

    Attributes:
      table: as a COCO file: images, categories and annotations.
      image_ids: the data set's own number of each image, or its position where there is none.
      class_ids: the data set's own number of each label, or label + 1.
      masks: whether objects have regions.
    """

    table: Mapping[str, Any]
    image_ids: tuple[int, ...]
    class_ids: tuple[int, ...]
    masks: bool


def truth_of(annotations: Iterable[Annotation | None], classes: Sequence[str], class_ids: Sequence[int] = ()) -> Truth:
    """The truth of a test set, from the annotations of its images in their order.

    Crowds, and objects that VOC calls difficult, count neither as found nor as missed. Objects are numbered from 1: COCO's rules take the
    number 0 for none. An object without an area has that of its box.

    Raises EvalError for images whose objects are not annotated or measured in shares of the image, for image numbers that occur twice,
    and for test images without any object. (Boxes on whole pixels of an image of 1 x 1 are no shares.)
    """
    ids = tuple(class_ids) or tuple(range(1, len(classes) + 1))
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    for position, annotation in enumerate(annotations):
        if annotation is None or annotation.instances is None or annotation.frame is None or _in_shares(annotation):
            raise EvalError(f"test image {position}: found no objects in pixels; expected a prepared set with a feature 'objects'")
        height, width = annotation.frame
        image_id = position if annotation.image_id < 0 else annotation.image_id
        images.append({"id": image_id, "height": height, "width": width})
        for instance in annotation.instances:
            left, top, right, bottom = instance.box
            entry = {
                "id": len(objects) + 1,
                "image_id": image_id,
                "category_id": ids[instance.label],
                "bbox": [left, top, right - left, bottom - top],
                "area": instance.area or (right - left) * (bottom - top),
                "iscrowd": int(instance.is_crowd or instance.is_difficult),
            }
            objects.append(entry | ({"segmentation": json.loads(instance.segmentation)} if instance.segmentation else {}))
    numbers = tuple(image["id"] for image in images)
    if len(set(numbers)) < len(numbers):
        raise EvalError(f"test: found {len(numbers) - len(set(numbers)):,} images with the number of another; expected different image_id")
    if not any(not entry["iscrowd"] for entry in objects):
        raise EvalError("test: found no object; expected at least one that is no crowd")
    categories = [{"id": id, "name": name} for id, name in zip(ids, classes, strict=True)]
    table = {"images": images, "categories": categories, "annotations": objects}
    return Truth(table, numbers, ids, all("segmentation" in entry for entry in objects))


def _in_shares(annotation: Annotation) -> bool:
    """Whether boxes are shares of the image. Of an image of 1 x 1 pixels, whose frame is the same, they lie on whole pixels."""
    return annotation.frame == (1, 1) and any(side % 1 for instance in annotation.instances or () for side in instance.box)


def precision(table: Mapping[str, Any], results: Sequence[Mapping[str, Any]], kind: Kind) -> Precision:
    """The precision of results against a COCO table, by the IoU of boxes ("bbox") or masks ("segm"); at most 100 results an image count.

    With "segm" the area of a result is that of its mask, whatever box it has. Classes are in the order of the table. Results of an image
    or a class that the table does not have are refused with an EvalError.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    _check(table, results)
    left_out = "bbox" if kind == "segm" else "segmentation"
    entries = [{key: value for key, value in result.items() if key != left_out} for result in results]
    truth = COCO(_copy(table))
    if entries:
        detections = truth.loadRes(entries)
    else:
        detections = COCO(_copy(table) | {"annotations": []})
    scoring = COCOeval_faster(truth, detections, iouType=kind)
    scoring.evaluate()
    scoring.accumulate()
    labels = [str(label) for label in scoring.params.areaRngLbl]
    values = np.asarray(scoring.eval["precision"], np.float64)[..., -1]  # of 1, 10 and 100 results an image the last
    values = np.where(values < 0, np.nan, values)[..., [labels.index(name) for name in _RANGES]]
    order = [scoring.params.catIds.index(category["id"]) for category in table["categories"]]
    return Precision(values[:, :, order])


def _check(table: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> None:
    for key, part in (("image_id", "images"), ("category_id", "categories")):
        unknown = {result[key] for result in results} - {entry["id"] for entry in table[part]}
        if unknown:
            raise EvalError(f"results: found the {key} {min(unknown)}, which is none of the {len(table[part]):,} {part} of the test")


def _copy(table: Mapping[str, Any]) -> dict[str, Any]:
    """A copy whose entries may be written to, as the scoring does."""
    return {key: [dict(entry) for entry in table[key]] for key in ("images", "categories", "annotations")}
