"""COCO's JSON of objects, checked entry by entry: images, categories, boxes, regions, crowds."""

from __future__ import annotations

import collections
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from sere_jax.data.annotations.regions import region_fault
from sere_jax.data.sources.annotation import Instance, Size
from sere_jax.data.sources.example import SourceError, nfc

_LISTED = 5  # faults that one message lists
_IDS = 2**63  # ids are below it: prepared sets store them in 64 bits
_KEYS = {
    "images": {"id": int, "file_name": str, "width": int, "height": int},
    "categories": {"id": int, "name": str},
    "annotations": {"id": int, "image_id": int, "category_id": int, "bbox": list},
}


class CocoImage(NamedTuple):
    """An image of the file: its id, its name below the directory of images, height and width, and its objects by id."""

    id: int
    name: str
    frame: Size
    instances: tuple[Instance, ...]


class CocoTable(NamedTuple):
    """What a file holds, sorted by ids. Labels number the categories by id from 0: COCO's 80 categories have ids from 1 to 90.

    Attributes:
      classes: the category's name of each label.
      class_ids: its id, which COCO's result files name.
      images: all images, those without objects too.
      notes: sentences on boxes that are empty or reach outside their image, and on files that are several images.
    """

    classes: tuple[str, ...]
    class_ids: tuple[int, ...]
    images: tuple[CocoImage, ...]
    notes: tuple[str, ...] = ()


def read_coco(path: str) -> CocoTable:
    """Read and check a file. Raises SourceError with the first faults, each with its entry.

    Faults of entries are missing keys, values of another type, ids below 0 or used twice, names of categories that are blank or used
    twice, and images or categories that are not in the file. A file without images is one too.
    Faults of objects are boxes without numbers or outside their image, negative sides, and regions that `decode_region` refuses.
    A box of width or height 0 is kept and noted, as COCO's own training file has one; so is a box that is partly outside. Several images
    of one file name are noted.
    """
    try:
        with open(path, encoding="utf-8") as file:
            table = json.load(file)
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: cannot be read as COCO's JSON: {error}") from error
    if not isinstance(table, dict) or not all(isinstance(table.get(key), list) for key in _KEYS):
        raise SourceError(f"{path}: cannot be read as COCO's JSON: expected lists 'images', 'annotations' and 'categories'")
    _refuse(path, list(_key_faults(table)))
    images = {entry["id"]: entry for entry in table["images"]}
    numbers = {id: label for label, id in enumerate(sorted(entry["id"] for entry in table["categories"]))}
    _refuse(
        path, [*_shared_faults(table), *(fault for entry in enumerate(table["annotations"]) for fault in _faults(*entry, images, numbers))]
    )
    return _table(table, images, numbers)


def _table(table: Mapping[str, Any], images: Mapping[int, Any], numbers: Mapping[int, int]) -> CocoTable:
    instances: dict[int, list[Instance]] = collections.defaultdict(list)
    for entry in sorted(table["annotations"], key=lambda entry: entry["id"]):
        instances[entry["image_id"]].append(_instance(entry, numbers))
    names = {entry["id"]: entry["name"] for entry in table["categories"]}
    result = [
        CocoImage(id, entry["file_name"], (entry["height"], entry["width"]), tuple(instances[id])) for id, entry in sorted(images.items())
    ]
    boxes = [(*one.box, *image.frame) for image in result for one in image.instances]
    empty = sum(left >= right or top >= bottom for left, top, right, bottom, _, _ in boxes)
    outside = sum(left < 0 or top < 0 or right > width or bottom > height for left, top, right, bottom, height, width in boxes)
    notes = [f"{empty:,} of {len(boxes):,} boxes are empty; training leaves them out"] if empty else []
    notes += [f"{outside:,} of {len(boxes):,} boxes reach outside their image; they are cut at its edges"] if outside else []
    repeated = [name for name, count in collections.Counter(image.name for image in result).items() if count > 1]
    notes += (
        [f"{len(repeated):,} files are listed as several images, each with its own objects; the first is {repeated[0]!r}"]
        if repeated
        else []
    )
    return CocoTable(tuple(names[id] for id in numbers), tuple(numbers), tuple(result), tuple(notes))


def _instance(entry: Mapping[str, Any], numbers: Mapping[int, int]) -> Instance:
    left, top, width, height = entry["bbox"]
    region = entry.get("segmentation")
    return Instance(
        numbers[entry["category_id"]],
        (left, top, left + width, top + height),
        id=entry["id"],
        area=float(entry.get("area", width * height)),
        is_crowd=bool(entry.get("iscrowd", 0)),
        segmentation=json.dumps(region, separators=(",", ":")) if region else "",
    )


def _key_faults(table: Mapping[str, Any]) -> Iterator[str]:
    for kind, keys in _KEYS.items():
        for number, entry in enumerate(table[kind]):
            if not isinstance(entry, dict):
                yield f"{kind}[{number}]: found {entry!r}, expected an object with {', '.join(keys)}"
                continue
            for key, expected in keys.items():
                if key not in entry:
                    yield f"{_named(kind, number, entry)}: has no {key!r}"
                elif not isinstance(entry[key], expected) or isinstance(entry[key], bool):
                    wanted = {int: "a whole number", str: "a text", list: "a list"}[expected]
                    yield f"{_named(kind, number, entry)}: found {key} {entry[key]!r}, expected {wanted}"
                elif key == "id" and not 0 <= entry[key] < _IDS:
                    yield f"{_named(kind, number, entry)}: found id {entry[key]}, expected a whole number of at least 0 and below 2^63"


def _shared_faults(table: Mapping[str, Any]) -> Iterator[str]:
    for kind, key in (("images", "id"), ("categories", "id"), ("categories", "name"), ("annotations", "id")):
        counts = collections.Counter(_stored_name(entry[key]) if key == "name" else entry[key] for entry in table[kind])
        yield from (f"{kind}: {count} entries have the {key} {value!r}" for value, count in counts.items() if count > 1)
    for number, entry in enumerate(table["categories"]):
        if not _stored_name(entry["name"]):
            yield f"{_named('categories', number, entry)}: found name {entry['name']!r}, expected a text that is not blank"
    if not table["images"]:
        yield "images: found none, expected at least one"
    for number, entry in enumerate(table["images"]):
        if min(entry["width"], entry["height"]) < 1:
            yield f"{_named('images', number, entry)}: found {entry['width']} x {entry['height']} pixels, expected at least 1 x 1"


def _faults(number: int, entry: Mapping[str, Any], images: Mapping[int, Any], numbers: Mapping[int, int]) -> Iterator[str]:
    """What is wrong with one annotation whose keys are there."""
    name = _named("annotations", number, entry)
    if entry["category_id"] not in numbers:
        yield f"{name}: found category_id {entry['category_id']}, expected the id of one of the {len(numbers)} categories"
    if entry["image_id"] not in images:
        yield f"{name}: found image_id {entry['image_id']}, expected the id of one of the {len(images)} images"
        return
    width, height = images[entry["image_id"]]["width"], images[entry["image_id"]]["height"]
    yield from (f"{name}: found bbox {entry['bbox']}, expected {wanted}" for wanted in _box_fault(entry["bbox"], width, height))
    area = entry.get("area", 0)
    if not _is_number(area) or area < 0:
        yield f"{name}: found area {area!r}, expected a number of pixels"
    if entry.get("iscrowd", 0) not in (0, 1):
        yield f"{name}: found iscrowd {entry['iscrowd']!r}, expected 0 or 1"
    if entry.get("segmentation") and (fault := region_fault(entry["segmentation"], height, width)):
        yield f"{name}: has {fault}"


def _box_fault(box: list[Any], width: int, height: int) -> Iterator[str]:
    if len(box) != 4 or not all(map(_is_number, box)):
        yield "four numbers: left, top, width, height"
    elif box[2] < 0 or box[3] < 0:
        yield "no negative width or height"
    elif box[0] > width or box[1] > height or box[0] + box[2] < 0 or box[1] + box[3] < 0:
        yield f"a box in the image of {width} x {height} pixels"


def _refuse(path: str, faults: list[str]) -> None:
    if faults:
        more = f"\n  and {len(faults) - _LISTED:,} more" if len(faults) > _LISTED else ""
        raise SourceError(f"{path}: {len(faults):,} fault{'s' * (len(faults) > 1)}:\n  " + "\n  ".join(faults[:_LISTED]) + more)


def _named(kind: str, number: int, entry: Mapping[str, Any]) -> str:
    return f"{kind}[{number}]" + (f" (id {entry['id']!r})" if "id" in entry else "")


def _stored_name(name: str) -> str:
    """A category's name as prepared sets keep it: they lose spaces around it, and blank names."""
    return nfc(name.strip())


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
