"""Tiny data sets in the layouts that their makers use, for the tests of preparation."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
from PIL import Image
from scipy.io import savemat

from tests.data.images.images import encode, gradient


def picture(number, height=24, width=40, file_format="JPEG"):
    return encode(gradient(height, width, blue=10 * number), file_format)


def put(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def classes(root, names, per_class=2):
    """root/NAME/NAME_i.JPEG, their blue channel counting from 0."""
    number = 0
    for name in names:
        for i in range(per_class):
            put(root / name / f"{name}_{i}.JPEG", picture(number))
            number += 1


WNIDS = ("n01440764", "n01443537", "n02102040")


def imagenet(root):
    classes(root / "train", WNIDS)
    classes(root / "val", WNIDS, per_class=1)


def tar(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return buffer.getvalue()


def imagenet_tars(root):
    """The same pictures as `imagenet`, in the archives of the challenge; its own numbers of classes are in no order."""
    inner = [(f"{wnid}.tar", tar((f"{wnid}_{i}.JPEG", picture(2 * c + i)) for i in range(2))) for c, wnid in enumerate(WNIDS)]
    put(root / "ILSVRC2012_img_train.tar", tar(inner[::-1]))
    order = (2, 0, 1)  # the classes of the validation images
    put(root / "ILSVRC2012_img_val.tar", tar((f"ILSVRC2012_val_0000000{i}.JPEG", picture(c)) for i, c in enumerate(order)))
    numbers = (7, 1, 4)
    synsets = np.zeros(3, [("ILSVRC2012_ID", float), ("WNID", object)])
    synsets["ILSVRC2012_ID"], synsets["WNID"] = numbers, WNIDS
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets})
    truth = "".join(f"{numbers[c]}\n" for c in order).encode()
    data = "ILSVRC2012_devkit_t12/data/"
    devkit = tar([(data + "meta.mat", meta.getvalue()), (data + "ILSVRC2012_validation_ground_truth.txt", truth)])
    with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as archive, tarfile.open(fileobj=io.BytesIO(devkit)) as plain:
        for member in plain:
            archive.addfile(member, plain.extractfile(member))


def label_map(height=24, width=40):
    """Classes 0..3 by quarters, and a border of 255."""
    classes = np.zeros((height, width), np.uint8)
    classes[height // 2 :] += 1
    classes[:, width // 2 :] += 2
    classes[0] = 255
    return classes


def imagenet_s(root):
    classes(root / "train-semi", WNIDS[:2])
    classes(root / "validation", WNIDS[:2], per_class=1)
    for split in ("train-semi", "validation"):
        for image in sorted((root / split).rglob("*.JPEG")):
            number = label_map().astype(np.int64) * 100  # above 255: R + 256 G
            rgb = np.stack([number % 256, number // 256, 0 * number], -1).astype(np.uint8)
            put(root / f"{split}-segmentation" / image.relative_to(root / split).with_suffix(".png"), encode(rgb))


XML = """<annotation><size><width>40</width><height>24</height></size>
<object><name>cat</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>20</xmax><ymax>12</ymax></bndbox></object>
<object><name>dog</name><difficult>1</difficult><bndbox><xmin>11</xmin><ymin>7</ymin><xmax>40</xmax><ymax>24</ymax></bndbox></object>
</annotation>"""


def voc(root):
    root = root / "VOCdevkit" / "VOC2012"
    palette = Image.fromarray(label_map()).convert("P")
    palette.putpalette([7, 8, 9] * 256)
    for number, name in enumerate(("2007_000001", "2007_000002", "2008_000003")):
        put(root / "JPEGImages" / f"{name}.jpg", picture(number))
        put(root / "SegmentationClassAug" / f"{name}.png", encode(label_map()))
        if number < 2:
            put(root / "SegmentationClass" / f"{name}.png", encode(palette))
            put(root / "Annotations" / f"{name}.xml", XML)
    lists = root / "ImageSets" / "Segmentation"
    put(lists / "train.txt", "2007_000001\n")
    put(lists / "val.txt", "2007_000002\n")
    put(lists / "train_aug.txt", "/JPEGImages/2007_000001.jpg /SegmentationClassAug/2007_000001.png\n2008_000003\n")


def coco(root):
    categories = [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}]
    boxes = {7: [(90, [4.0, 6.0, 20.0, 12.0], 0)], 3: [(1, [0.0, 0.0, 44.0, 10.0], 0), (1, [5.0, 5.0, 5.0, 5.0], 1)], 5: []}
    images = [{"id": i, "file_name": f"{i:012}.jpg", "height": 24, "width": 40} for i in boxes]
    things = [
        {
            "id": 100 + 10 * i + n,
            "image_id": i,
            "category_id": category,
            "bbox": box,
            "area": box[2] * box[3] / 2,
            "iscrowd": crowd,
            "segmentation": {"counts": [125, 5, 830], "size": [24, 40]} if crowd else [[1.5, 2, 3, 4, 5, 6]],
        }
        for i, found in boxes.items()
        for n, (category, box, crowd) in enumerate(found)
    ]
    table = json.dumps({"images": images, "annotations": things, "categories": categories})
    put(root / "annotations" / "instances_train2017.json", table)
    put(root / "annotations" / "captions_train2017.json", "{}")
    for number, i in enumerate(boxes):
        put(root / "train2017" / f"{i:012}.jpg", picture(number))


def ade20k(root):
    root = root / "ADEChallengeData2016"
    for split in ("training", "validation"):
        for i in range(2):
            put(root / "images" / split / f"ADE_{split}_{i}.jpg", picture(i))
            put(root / "annotations" / split / f"ADE_{split}_{i}.png", encode(label_map()))
    put(root / "objectInfo150.txt", "Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0.1\t5\t5\t1\twall\n2\t0.1\t5\t5\t1\tbuilding, edifice\n")


def inat2019(root):
    names = ["Anolis", "Bufo", "Corvus"]
    put(root / "categories.json", json.dumps([{"id": i, "name": names[i]} for i in (2, 0, 1)]))
    for split, ids in (("train", (5, 3)), ("val", (8,))):
        images = [{"id": i, "file_name": f"train_val2019/Birds/{i}/a.jpg"} for i in ids]
        labels = [{"id": i, "image_id": i, "category_id": i % 3} for i in ids]
        put(root / f"{split}2019.json", json.dumps({"images": images, "annotations": labels, "categories": []}))
        for i in ids:
            put(root / f"train_val2019/Birds/{i}/a.jpg", picture(i))


CARS = ("Acura TL Sedan 2012", "AM General Hummer SUV 2000", "Volvo C30 Hatchback 2012")


def cars(root):
    """The two folders, the devkit and the labels of the test images; the tables are in no order and count classes from 1."""
    kinds = [("bbox_x1", int), ("class", int), ("fname", object)]
    (root / "devkit").mkdir(parents=True)
    names = np.empty(3, object)
    names[:] = CARS
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": names})
    tables = {"train": ("devkit/cars_train_annos.mat", (3, 1, 2, 1)), "test": ("cars_test_annos_withlabels.mat", (2, 3))}
    for split, (table, numbers) in tables.items():
        rows = np.zeros(len(numbers), kinds)
        for i, number in enumerate(numbers):
            rows[i] = (5, number, f"{i + 1:05}.jpg")
            put(root / f"cars_{split}" / f"{i + 1:05}.jpg", picture(i))
        savemat(root / table, {"annotations": rows})
