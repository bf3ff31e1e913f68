"""Data sets with objects: PASCAL VOC and everything in COCO's JSON."""

from __future__ import annotations

import logging
import os
import re
import xml.etree.ElementTree
from collections.abc import Iterator

from sere_jax.data.annotations.coco import CocoTable, read_coco
from sere_jax.data.prepare.records import Layout, Place, Record
from sere_jax.data.sources.annotation import Instance
from sere_jax.data.sources.example import SourceError

_log = logging.getLogger(__name__)

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

    Labels number the categories by id from 0 (the ids of 80 of COCO's 90 have gaps); `id`, `image_id` and `object_ids` are COCO's, as its
    evaluation needs them. Label maps in `semantic/*.png`, where there are any, go with `images/`. Images that are missing are counted in
    a warning, and again among those that are left out. Raises SourceError for what `read_coco` refuses, for splits of different
    categories, and where no image is there.
    """
    files = _coco_files(directory)
    if not files:
        raise SourceError(f"{directory}: expected annotations/instances_*.json or instances.json")
    tables = {split: read_coco(path) for split, (path, _) in files.items()}
    first = next(iter(tables))
    for split, table in tables.items():
        if (table.classes, table.class_ids) != (tables[first].classes, tables[first].class_ids):
            raise SourceError(f"{files[split][0]}: has other categories than {files[first][0]}; expected the same in all splits")
        for note in (*table.notes, *_missing(*files[split], table)):
            _log.warning("%s: %s", ascii(files[split][0])[1:-1], note)
    maps = os.path.join(directory, "semantic")
    splits = {split: _coco_records(tables[split], files[split][1], maps) for split in files}
    has_maps = any(record.label_map for records in splits.values() for record in records)
    return Layout(
        "coco",
        splits,
        object_classes=tables[first].classes,
        object_ids=tables[first].class_ids,
        map_classes=() if has_maps else None,
        has_ids=True,
    )


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


def _missing(path: str, images: str, table: CocoTable) -> Iterator[str]:
    missing = [image.name for image in table.images if not os.path.isfile(os.path.join(images, image.name))]
    if missing and len(missing) == len(table.images):
        raise SourceError(f"{path}: none of its {len(missing):,} images is in {images}; the first would be {missing[0]!r}")
    if missing:
        yield f"{len(missing):,} of {len(table.images):,} images are not in {images}, the first is {missing[0]!r}"


def _coco_records(table: CocoTable, images: str, maps: str) -> list[Record]:
    records = []
    for image in table.images:
        path = os.path.join(maps, os.path.splitext(image.name)[0] + ".png")
        label_map = Place(path) if os.path.isfile(path) else None
        place = Place(os.path.join(images, image.name))
        records.append(Record(image.name, place, label_map=label_map, instances=image.instances, frame=image.frame, id=image.id))
    return records
