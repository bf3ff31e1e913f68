"""Data sets as their makers distribute them: ImageNet (folders or tar files), ImageNet-S, ADE20K, iNaturalist, Cars; the table of all."""

from __future__ import annotations

import difflib
import io
import json
import logging
import os
import tarfile
from collections.abc import Callable, Iterator
from typing import Any

from sere_jax.data.prepare.boxes import coco, voc
from sere_jax.data.prepare.records import Layout, Place, Record, from_source
from sere_jax.data.sources.example import SourceError
from sere_jax.data.sources.folder import list_images, not_read
from sere_jax.data.sources.open import open_source
from sere_jax.writing import place

_log = logging.getLogger(__name__)


def open_layout(spec: str, *, split: str = "") -> Layout:
    """The data set that `KIND:DIR` names, KIND one of `LAYOUTS`, or any source of a config (one split, called `split`).

    Raises SourceError when the directory is not laid out so; the message names what is missing.
    """
    kind, _, rest = spec.partition(":")
    if kind in LAYOUTS:
        directory = str(place(rest))
        if not rest or not os.path.isdir(directory):
            raise SourceError(f"{spec!r}: expected {kind}:DIR with a directory that exists")
        layout = LAYOUTS[kind](directory)
        if split and split not in layout.splits:
            raise SourceError(f"{spec!r}: has no split {split!r}; found {', '.join(layout.splits)}")
        return Layout(**layout.fields(), splits={split: layout.splits[split]}) if split else layout
    near = difflib.get_close_matches(kind, LAYOUTS, n=1)
    try:
        source = open_source(spec)
    except SourceError as error:
        hint = f" (or a data set {near[0]}:DIR; did you mean {near[0]!r}?)" if near else ""
        raise SourceError(f"{error}{hint}") from error
    default = rest.partition("[")[0].rpartition(":")[2].partition("+")[0] if kind == "tfds" else "train"
    return from_source(source, kind, split or default)


def imagenet(directory: str) -> Layout:
    """`train/WNID/*.JPEG`, `val/WNID/*.JPEG`, or the tar files ILSVRC2012_img_{train,val}.tar with ILSVRC2012_devkit_t12.tar.gz.

    Classes are wnids in sorted order, as everywhere. Tar files are read in place.
    """
    splits: dict[str, list[tuple[str, str, Place]]] = {}  # (wnid, name, place)
    for name, folder in (("train", "train"), ("validation", "val")):
        archive = os.path.join(directory, f"ILSVRC2012_img_{folder}.tar")
        if os.path.isdir(os.path.join(directory, folder)):
            splits[name] = list(_by_class(directory, folder))
        elif os.path.isfile(archive):
            splits[name] = list(_train_tar(archive) if name == "train" else _validation_tar(directory, archive))
    if not splits:
        raise SourceError(f"{directory}: found neither train/ nor val/ nor ILSVRC2012_img_train.tar nor ILSVRC2012_img_val.tar")
    return _classified("imagenet", splits)


def _classified(name: str, splits: dict[str, list[tuple[str, str, Place]]]) -> Layout:
    classes = tuple(sorted({wnid for images in splits.values() for wnid, _, _ in images}))
    number = {wnid: index for index, wnid in enumerate(classes)}
    return Layout(name, {key: [Record(n, place, number[wnid]) for wnid, n, place in images] for key, images in splits.items()}, classes)


def _by_class(directory: str, folder: str) -> Iterator[tuple[str, str, Place]]:
    root = os.path.join(directory, folder)
    images = _images(root)
    if loose := [path for path in images if os.sep not in path]:
        _log.warning("%s: %s images are left out, because they lie in no folder of a class", ascii(root)[1:-1], f"{len(loose):,}")
    for path in images:
        if os.sep in path:
            yield path.split(os.sep)[0], path, Place(os.path.join(root, path))


def _images(root: str) -> list[str]:
    """The images below a directory; files of other kinds are counted in the log. Raises SourceError where it cannot be listed."""
    images, others = list_images(root, root)
    if others:
        _log.warning("%s: %s", ascii(root)[1:-1], not_read(others))
    return images


def _train_tar(path: str) -> Iterator[tuple[str, str, Place]]:
    """A tar file of one tar file a class. Only headers are read; images stay where they are."""
    with tarfile.open(path, "r:") as outer:
        for member in sorted((member for member in outer if member.name.endswith(".tar")), key=lambda member: member.name):
            wnid = os.path.splitext(os.path.basename(member.name))[0]
            inner_file = outer.extractfile(member)
            assert inner_file is not None  # a plain member
            with tarfile.open(fileobj=inner_file, mode="r:") as inner:
                for image in sorted((image for image in inner if image.isfile()), key=lambda image: image.name):
                    yield wnid, f"{wnid}/{image.name}", Place(path, member.offset_data + image.offset_data, image.size)


def _validation_tar(directory: str, path: str) -> Iterator[tuple[str, str, Place]]:
    devkit = os.path.join(directory, "ILSVRC2012_devkit_t12.tar.gz")
    if not os.path.isfile(devkit):
        raise SourceError(f"{path}: the labels of its images are in ILSVRC2012_devkit_t12.tar.gz, which is not beside it")
    wnids = _validation_wnids(devkit)
    with tarfile.open(path, "r:") as archive:
        images = sorted((image for image in archive if image.isfile()), key=lambda image: image.name)
    if len(images) != len(wnids):
        raise SourceError(f"{path}: holds {len(images)} images, the devkit labels {len(wnids)}")
    for wnid, image in zip(wnids, images, strict=True):
        yield wnid, image.name, Place(path, image.offset_data, image.size)


def _validation_wnids(devkit: str) -> list[str]:
    """The wnid of each validation image: the ground truth's numbers through the table of synsets."""
    from scipy.io import loadmat  # comes with scikit-learn; slow to import

    root = "ILSVRC2012_devkit_t12/data/"
    with tarfile.open(devkit) as archive:
        parts = [archive.extractfile(root + name) for name in ("meta.mat", "ILSVRC2012_validation_ground_truth.txt")]
        meta, truth = (b"" if part is None else part.read() for part in parts)
    synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
    wnid_of = {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in synsets}
    return [wnid_of[int(line)] for line in truth.split()]


def imagenet_s(directory: str) -> Layout:
    """`train[-semi]`, `validation`, `test` with WNID/ folders; label maps in `*-segmentation/WNID/NAME.png`, number = R + 256 G."""
    folders = {"train": "train", "train_semi": "train-semi", "validation": "validation", "test": "test"}
    present = {split: folder for split, folder in folders.items() if os.path.isdir(os.path.join(directory, folder))}
    if not present:
        raise SourceError(f"{directory}: expected one of {', '.join(folders.values())}")
    plain = _classified("imagenet_s", {split: list(_by_class(directory, folder)) for split, folder in present.items()})
    splits = {
        split: [
            record._replace(
                label_map=_existing(os.path.join(directory, f"{present[split]}-segmentation", os.path.splitext(record.name)[0] + ".png"))
            )
            for record in records
        ]
        for split, records in plain.splits.items()
    }
    return Layout("imagenet_s", splits, plain.classes, map_classes=("other", *plain.classes), map_coding="red_green")


def ade20k(directory: str) -> Layout:
    """ADEChallengeData2016: `images/{training,validation}/*.jpg`, `annotations/.../*.png` with 0 = other, 1..150 = classes."""
    inside = os.path.join(directory, "ADEChallengeData2016")
    directory = inside if os.path.isdir(inside) else directory
    splits: dict[str, list[Record]] = {}
    for split, folder in (("train", "training"), ("validation", "validation")):
        root = os.path.join(directory, "images", folder)
        if os.path.isdir(root):
            splits[split] = [
                Record(path, Place(os.path.join(root, path)), label_map=_existing(_png(directory, "annotations", folder, path)))
                for path in _images(root)
            ]
    if not splits:
        raise SourceError(f"{directory}: expected images/training and annotations/training, as in ADEChallengeData2016")
    return Layout("ade20k", splits, map_classes=("other", *_object_names(directory)))


def _object_names(directory: str) -> list[str]:
    """objectInfo150.txt: a table with the names in the last column."""
    path = os.path.join(directory, "objectInfo150.txt")
    if not os.path.isfile(path):
        return [f"class {number}" for number in range(1, 151)]
    with open(path) as file:
        return [line.rstrip("\n").split("\t")[-1].strip() for line in file][1:]


def inat2019(directory: str) -> Layout:
    """iNaturalist 2019: `{train,val}2019.json`, `categories.json`, images as the JSON's `file_name` says. Labels count categories by id."""
    categories = sorted(_json(directory, "categories.json"), key=lambda category: category["id"])
    number = {category["id"]: index for index, category in enumerate(categories)}
    splits: dict[str, list[Record]] = {}
    for split, file in (("train", "train2019.json"), ("validation", "val2019.json")):
        if not os.path.isfile(os.path.join(directory, file)):
            continue
        table = _json(directory, file)
        label = {annotation["image_id"]: number[annotation["category_id"]] for annotation in table["annotations"]}
        images = sorted(table["images"], key=lambda image: image["id"])
        splits[split] = [
            Record(image["file_name"], Place(os.path.join(directory, image["file_name"])), label[image["id"]], id=image["id"])
            for image in images
        ]
    if not splits:
        raise SourceError(f"{directory}: expected train2019.json or val2019.json")
    return Layout("inat2019", splits, tuple(str(category["name"]) for category in categories), has_ids=True)


def cars(directory: str) -> Layout:
    """Stanford Cars: `cars_train/`, `cars_test/`, `devkit/` with cars_meta.mat and cars_train_annos.mat, cars_test_annos_withlabels.mat.

    The classes are those of cars_meta.mat, in its order; the tables count them from 1.
    """
    classes = tuple(str(name) for name in _mat(directory, "devkit/cars_meta.mat", "class_names"))
    splits: dict[str, list[Record]] = {}
    for split, table in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        folder = f"cars_{split}"
        if not os.path.isdir(os.path.join(directory, folder)):
            continue
        rows = [(str(row["fname"]), int(row["class"])) for row in _mat(directory, table, "annotations")]
        if wrong := [number for _, number in rows if not 1 <= number <= len(classes)]:
            raise SourceError(f"{directory}/{table}: found the class {wrong[0]}, expected 1 to {len(classes)}")
        splits[split] = [Record(f"{folder}/{name}", Place(os.path.join(directory, folder, name)), number - 1) for name, number in rows]
    if not splits:
        raise SourceError(f"{directory}: expected cars_train or cars_test")
    return Layout("cars", splits, classes)


def _mat(directory: str, name: str, key: str) -> list[Any]:
    """The elements of an array of a MATLAB file."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    path = os.path.join(directory, name)
    try:
        return list(loadmat(path, squeeze_me=True)[key].ravel())
    except (OSError, ValueError, TypeError, KeyError, AttributeError, NotImplementedError, MatReadError) as error:
        raise SourceError(f"{path}: cannot be read as a MATLAB file with {key!r}: {error}") from error


def _json(directory: str, name: str) -> Any:
    path = os.path.join(directory, name)
    try:
        with open(path) as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: cannot be read as JSON: {error}") from error


def _png(directory: str, *parts: str) -> str:
    return os.path.splitext(os.path.join(directory, *parts))[0] + ".png"


def _existing(path: str) -> Place | None:
    return Place(path) if os.path.isfile(path) else None


LAYOUTS: dict[str, Callable[[str], Layout]] = {
    "imagenet": imagenet,
    "imagenet_s": imagenet_s,
    "voc": voc,
    "coco": coco,
    "ade20k": ade20k,
    "inat2019": inat2019,
    "cars": cars,
}
