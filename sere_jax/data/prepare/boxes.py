"""Data sets with objects: PASCAL VOC and everything in COCO's JSON."""

from __future__ import annotations

import json
import os
import re
import xml.etree.ElementTree
from typing import Any

from sere_jax.data.prepare.records import Layout, Place, Record, Thing
from sere_jax.data.sources.example import SourceError

VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)


def voc(directory: str) -> Layout:
    """VOCdevkit/VOC2012: every list of `ImageSets/Segmentation` is a split, with label maps, and boxes from `Annotations`.

    The augmented list (train_aug.txt or trainaug.txt, names or pairs of paths) takes its label maps from `SegmentationClassAug`,
    which must hold the ordinary ones too. Label maps: 0 = background, 1..20, 255 = border.
    """
    for inside in ("", "VOC2012", "VOCdevkit/VOC2012"):
        root = os.path.join(directory, inside) if inside else directory
        if os.path.isdir(os.path.join(root, "JPEGImages")):
            break
    else:
        raise SourceError(f"{directory}: expected JPEGImages, ImageSets and SegmentationClass, as in VOCdevkit/VOC2012")
    lists = os.path.join(root, "ImageSets", "Segmentation")
    found = sorted(name for name in (os.listdir(lists) if os.path.isdir(lists) else ()) if name.endswith(".txt"))
    if not found:
        raise SourceError(f"{lists}: expected lists such as train.txt and val.txt")
    splits: dict[str, list[Record]] = {}
    for file in found:
        augmented = "aug" in file
        split = {"val": "validation", "trainaug": "train_aug"}.get(file[:-4], re.sub(r"\W", "_", file[:-4]))
        with open(os.path.join(lists, file)) as lines:
            names = [os.path.splitext(os.path.basename(line.split()[0]))[0] for line in lines if line.strip()]
        folder = "SegmentationClassAug" if augmented else "SegmentationClass"
        splits[split] = [_voc_record(root, name, folder) for name in names]
    return Layout("voc", splits, thing_classes=VOC_CLASSES, mask_classes=("background", *VOC_CLASSES), has_masks=True)


def _voc_record(root: str, name: str, folder: str) -> Record:
    mask = os.path.join(root, folder, f"{name}.png")
    if not os.path.isfile(mask):
        raise SourceError(f"{mask}: missing; {name} is in a list of ImageSets/Segmentation")
    described = os.path.join(root, "Annotations", f"{name}.xml")
    things = _voc_things(described) if os.path.isfile(described) else ()
    return Record(f"{name}.jpg", Place(os.path.join(root, "JPEGImages", f"{name}.jpg")), mask=Place(mask), things=things)


def _voc_things(path: str) -> tuple[Thing, ...]:
    """Boxes count pixels from 1 and include the last one."""
    found: list[Thing] = []
    for thing in xml.etree.ElementTree.parse(path).iter("object"):
        name = thing.findtext("name", "")
        left, top, right, bottom = (float(thing.findtext(f"bndbox/{side}", "nan")) for side in ("xmin", "ymin", "xmax", "ymax"))
        difficult = thing.findtext("difficult", "0").strip() == "1"
        box = (left - 1, top - 1, right, bottom)
        area = (right - left + 1) * (bottom - top + 1)
        found.append(Thing(VOC_CLASSES.index(name), box, id=len(found), area=area, is_difficult=difficult))
    return tuple(found)


def coco(directory: str) -> Layout:
    """`annotations/instances_{train,val}2017.json` with images in `{train,val}2017/`, or `instances.json` with `images/`.

    Labels number the categories by id from 0 (the ids of 80 of COCO's 90 have gaps); `id` and `image_id` are COCO's, as its
    evaluation needs them. Label maps in `semantic/*.png`, where there are any, go with `images/`.
    """
    files = _coco_files(directory)
    if not files:
        raise SourceError(f"{directory}: expected annotations/instances_*.json or instances.json")
    tables = {split: _load(path) for split, (path, _) in files.items()}
    categories = sorted(next(iter(tables.values()))["categories"], key=lambda category: category["id"])
    number = {category["id"]: index for index, category in enumerate(categories)}
    masks = os.path.join(directory, "semantic")
    splits = {split: _coco_records(tables[split], files[split][1], masks, number) for split in files}
    has_masks = any(record.mask for records in splits.values() for record in records)
    names = tuple(str(category["name"]) for category in categories)
    return Layout("coco", splits, thing_classes=names, has_masks=has_masks, has_ids=True)


def _coco_files(directory: str) -> dict[str, tuple[str, str]]:
    """split -> (JSON, directory of images)."""
    found: dict[str, tuple[str, str]] = {}
    annotations = os.path.join(directory, "annotations")
    for name in sorted(os.listdir(annotations)) if os.path.isdir(annotations) else ():
        match = re.fullmatch(r"instances_((train|val)?\w*)\.json", name)
        if match:
            split = {"train": "train", "val": "validation"}.get(match.group(2), match.group(1))
            found[split] = (os.path.join(annotations, name), os.path.join(directory, match.group(1)))
    single = os.path.join(directory, "instances.json")
    if not found and os.path.isfile(single):
        found["train"] = (single, os.path.join(directory, "images"))
    return found


def _load(path: str) -> Any:
    try:
        with open(path) as file:
            table = json.load(file)
        return {key: table[key] for key in ("images", "annotations", "categories")}
    except (OSError, ValueError, KeyError) as error:
        raise SourceError(f"{path}: cannot be read as COCO's JSON: {error!r}") from error


def _coco_records(table: Any, images: str, masks: str, number: dict[int, int]) -> list[Record]:
    things: dict[int, list[Thing]] = {}
    for one in sorted(table["annotations"], key=lambda one: one["id"]):
        left, top, width, height = one["bbox"]
        segmentation = json.dumps(one["segmentation"], separators=(",", ":")) if one.get("segmentation") else ""
        thing = Thing(
            number[one["category_id"]],
            (left, top, left + width, top + height),
            id=one["id"],
            area=float(one.get("area", width * height)),
            is_crowd=bool(one.get("iscrowd", 0)),
            segmentation=segmentation,
        )
        things.setdefault(one["image_id"], []).append(thing)
    records = []
    for image in sorted(table["images"], key=lambda image: image["id"]):
        name = image["file_name"]
        mask = os.path.join(masks, os.path.splitext(name)[0] + ".png")
        place = Place(mask) if os.path.isfile(mask) else None
        records.append(
            Record(name, Place(os.path.join(images, name)), mask=place, things=tuple(things.get(image["id"], ())), id=image["id"])
        )
    return records
