"""Data sets with objects: PASCAL VOC and everything in COCO's JSON."""

from __future__ import annotations

import json
import os
import re
import xml.etree.ElementTree
from typing import Any

from sere_jax.data.prepare.records import Layout, Place, Record
from sere_jax.data.sources.annotation import Instance
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
    files = sorted(name for name in (os.listdir(lists) if os.path.isdir(lists) else ()) if name.endswith(".txt"))
    if not files:
        raise SourceError(f"{lists}: expected lists such as train.txt and val.txt")
    splits: dict[str, list[Record]] = {}
    for file in files:
        augmented = "aug" in file
        split = {"val": "validation", "trainaug": "train_aug"}.get(file[:-4], re.sub(r"\W", "_", file[:-4]))
        with open(os.path.join(lists, file)) as lines:
            names = [os.path.splitext(os.path.basename(line.split()[0]))[0] for line in lines if line.strip()]
        folder = "SegmentationClassAug" if augmented else "SegmentationClass"
        splits[split] = [_voc_record(root, name, folder) for name in names]
    return Layout("voc", splits, object_classes=VOC_CLASSES, map_classes=("background", *VOC_CLASSES))


def _voc_record(root: str, name: str, folder: str) -> Record:
    label_map = os.path.join(root, folder, f"{name}.png")
    if not os.path.isfile(label_map):
        raise SourceError(f"{label_map}: missing; {name} is in a list of ImageSets/Segmentation")
    description = os.path.join(root, "Annotations", f"{name}.xml")
    instances = _voc_instances(description) if os.path.isfile(description) else ()
    image = Place(os.path.join(root, "JPEGImages", f"{name}.jpg"))
    return Record(f"{name}.jpg", image, label_map=Place(label_map), instances=instances)


def _voc_instances(path: str) -> tuple[Instance, ...]:
    """The file counts pixels from 1, and its right and lower edges are inclusive."""
    instances: list[Instance] = []
    try:
        elements = list(xml.etree.ElementTree.parse(path).iter("object"))
    except xml.etree.ElementTree.ParseError as error:
        raise SourceError(f"{path}: cannot be read as XML: {error}") from error
    for element in elements:
        name = element.findtext("name", "")
        if name not in VOC_CLASSES:
            raise SourceError(f"{path}: found the class {name!r}, expected one of {', '.join(VOC_CLASSES)}")
        left, top, right, bottom = (float(element.findtext(f"bndbox/{side}", "nan")) for side in ("xmin", "ymin", "xmax", "ymax"))
        if not left <= right or not top <= bottom:
            raise SourceError(f"{path}: found a bndbox from ({left}, {top}) to ({right}, {bottom}), expected rising numbers")
        difficult = element.findtext("difficult", "0").strip() == "1"
        box = (left - 1, top - 1, right, bottom)
        area = (right - left + 1) * (bottom - top + 1)
        instances.append(Instance(VOC_CLASSES.index(name), box, id=len(instances), area=area, is_difficult=difficult))
    return tuple(instances)


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
    maps = os.path.join(directory, "semantic")
    splits = {split: _coco_records(tables[split], files[split][1], maps, number) for split in files}
    has_maps = any(record.label_map for records in splits.values() for record in records)
    names = tuple(str(category["name"]) for category in categories)
    return Layout("coco", splits, object_classes=names, map_classes=() if has_maps else None, has_ids=True)


def _coco_files(directory: str) -> dict[str, tuple[str, str]]:
    """split -> (JSON, directory of images)."""
    files: dict[str, tuple[str, str]] = {}
    annotations = os.path.join(directory, "annotations")
    for name in sorted(os.listdir(annotations)) if os.path.isdir(annotations) else ():
        match = re.fullmatch(r"instances_((train|val)?\w*)\.json", name)
        if match:
            split = {"train": "train", "val": "validation"}.get(match.group(2), match.group(1))
            files[split] = (os.path.join(annotations, name), os.path.join(directory, match.group(1)))
    single = os.path.join(directory, "instances.json")
    if not files and os.path.isfile(single):
        files["train"] = (single, os.path.join(directory, "images"))
    return files


def _load(path: str) -> Any:
    try:
        with open(path, encoding="utf-8") as file:
            table = json.load(file)
        return {key: table[key] for key in ("images", "annotations", "categories")}
    except (OSError, ValueError, KeyError) as error:
        raise SourceError(f"{path}: cannot be read as COCO's JSON: {error!r}") from error


def _coco_records(table: Any, images: str, maps: str, number: dict[int, int]) -> list[Record]:
    instances: dict[int, list[Instance]] = {}
    for annotation in sorted(table["annotations"], key=lambda annotation: annotation["id"]):
        left, top, width, height = annotation["bbox"]
        segmentation = json.dumps(annotation["segmentation"], separators=(",", ":")) if annotation.get("segmentation") else ""
        instance = Instance(
            number[annotation["category_id"]],
            (left, top, left + width, top + height),
            id=annotation["id"],
            area=float(annotation.get("area", width * height)),
            is_crowd=bool(annotation.get("iscrowd", 0)),
            segmentation=segmentation,
        )
        instances.setdefault(annotation["image_id"], []).append(instance)
    records = []
    for image in sorted(table["images"], key=lambda image: image["id"]):
        name, image_id = image["file_name"], image["id"]
        path = os.path.join(maps, os.path.splitext(name)[0] + ".png")
        label_map = Place(path) if os.path.isfile(path) else None
        place = Place(os.path.join(images, name))
        records.append(Record(name, place, label_map=label_map, instances=tuple(instances.get(image_id, ())), id=image_id))
    return records
