"""Miniatures of VOC 2012, ADE20K and ImageNet-S: the files and lists of their makers, with a few tiny images of coloured rectangles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from tests.evals.segmentation.micro_masks import scene

WNIDS = ("n01440764", "n01443537", "n02102040")
Encode = Callable[[np.ndarray], Image.Image]


class Miniature(NamedTuple):
    """What a protocol should find in a miniature."""

    classes: int
    counted: int  # pixels of the validation images that scores count
    images: dict[str, int]  # by split


def _palette(label_map: np.ndarray) -> Image.Image:
    image = Image.fromarray(label_map.astype(np.uint8)).convert("P")
    image.putpalette([7, 8, 9] * 256)  # the colours mean nothing; the indices are the classes
    return image


def _red_green(label_map: np.ndarray) -> Image.Image:
    numbers = np.where(label_map == 255, 1000, label_map.astype(np.int64))
    return Image.fromarray(np.stack([numbers % 256, numbers // 256, 0 * numbers], -1).astype(np.uint8))


def _last_of_ade(label_map: np.ndarray) -> Image.Image:
    """The last three of ADE20K's classes, which are stored as 148 to 150."""
    return Image.fromarray(np.where(label_map == 255, 0, label_map + 148).astype(np.uint8))


def _save(rng: np.random.Generator, image: Path, masks: dict[Path, Encode]) -> np.ndarray:
    """Write one scene and its label map at each place, and return the map: 0 to 2, and 255."""
    pixels, label_map = scene(rng)
    for path, picture in ((image, Image.fromarray(pixels)), *((path, encode(label_map)) for path, encode in masks.items())):
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    return label_map


def voc(directory: Path) -> Miniature:
    """VOCdevkit/VOC2012: palette images for train and val, plain ones for the augmented list, which names pairs of paths."""
    rng, root, counted = np.random.default_rng(0), directory / "VOCdevkit" / "VOC2012", 0
    lists = {"train": ["2007_000001", "2007_000002"], "val": ["2007_000003", "2007_000004"], "train_aug": ["2007_000001", "2007_000002"]}
    lists["train_aug"].append("2008_000005")
    for name in sorted({name for names in lists.values() for name in names}):
        masks: dict[Path, Encode] = {root / "SegmentationClassAug" / f"{name}.png": Image.fromarray}
        if name != "2008_000005":
            masks[root / "SegmentationClass" / f"{name}.png"] = _palette
        label_map = _save(rng, root / "JPEGImages" / f"{name}.jpg", masks)
        counted += int((label_map != 255).sum()) * (name in lists["val"])
    place = root / "ImageSets" / "Segmentation"
    place.mkdir(parents=True)
    for split, names in lists.items():
        pair = "/JPEGImages/{0}.jpg /SegmentationClassAug/{0}.png\n" if split == "train_aug" else "{0}\n"
        (place / f"{split}.txt").write_text("".join(pair.format(name) for name in names))
    return Miniature(21, counted, {"train": 2, "train_aug": 3, "validation": 2})


def ade20k(directory: Path) -> Miniature:
    """ADEChallengeData2016, with the names of all 150 classes; 0 is none of them."""
    rng, root, counted = np.random.default_rng(1), directory / "ADEChallengeData2016", 0
    for split, count in (("training", 3), ("validation", 2)):
        for number in range(count):
            name = f"ADE_{split[:5]}_{number:08}"
            encode = {root / "annotations" / split / f"{name}.png": _last_of_ade}
            label_map = _save(rng, root / "images" / split / f"{name}.jpg", encode)
            counted += int((label_map != 255).sum()) * (split == "validation")
    heading, row = "Idx\tRatio\tTrain\tVal\tStuff\tName\n", "{0}\t0.1\t5\t5\t1\tclass {0}, thing {0}\n"
    (root / "objectInfo150.txt").write_text(heading + "".join(row.format(number) for number in range(1, 151)))
    return Miniature(150, counted, {"train": 3, "validation": 2})


def imagenet_s(directory: Path) -> Miniature:
    """ImageNetS300, with three classes: training and validation images with label maps, test images without."""
    rng, root, counted = np.random.default_rng(2), directory / "ImageNetS300", 0
    for split in ("train-semi", "validation", "test"):
        for number, wnid in enumerate(WNIDS):
            name = f"{wnid}/{wnid}_{number}"
            masks = {} if split == "test" else {root / f"{split}-segmentation" / f"{name}.png": _red_green}
            label_map = _save(rng, root / split / f"{name}.JPEG", masks)
            counted += int((label_map != 255).sum()) * (split == "validation")
    return Miniature(4, counted, {"train_semi": 3, "validation": 3})
