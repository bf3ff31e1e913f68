"""Real photographs that need no download: those inside the scikit-image and scikit-learn packages, cut into regions.

Every photograph is a class, and is cut into a 4 x 4 grid of cells whose roles are fixed:

    train   train   gallery query
    train   train   query   gallery
    gallery query   train   train
    query   gallery train   train

so that the three splits share the photograph's look and no pixel. A region is a square inside one 2 x 2 train block or
inside one gallery or query cell; regions of the same split may overlap. Query regions are colour-jittered, strongly
enough that pixels and colours alone say little about the photograph. List, cuts and jitter are constants of this file:
the same on every machine and independent of the seed of a run.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from sere_jax.data.images.decode import decode
from sere_jax.data.images.reading import ImageReading
from sere_jax.data.sources.example import Entry, Example, Source, SourceError

SPLITS = ("train", "gallery", "query")
REGIONS_PER_PHOTOGRAPH = {"train": 64, "gallery": 20, "query": 20}
JITTER = {"brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 0.15}

_GRID = 4
# (column, row, cells wide) of the blocks that regions of a split are drawn from
_BLOCKS = {
    "train": ((0, 0, 2), (2, 2, 2)),
    "gallery": ((2, 0, 1), (3, 1, 1), (0, 2, 1), (1, 3, 1)),
    "query": ((3, 0, 1), (2, 1, 1), (1, 2, 1), (0, 3, 1)),
}
_SMALLEST_SIDE = {"train": 0.55, "gallery": 0.75, "query": 0.75}  # of a block's shorter side; the largest is 1
_SEED = 20230706


class Photograph(NamedTuple):
    """One picture of an installed package: `path` below the package's directory, size in pixels."""

    name: str
    package: str
    path: str
    width: int
    height: int


# The stereo partner motorcycle_right is left out: it shows the same scene shifted sideways, so that a train region of one
# picture would contain what a query region of the other shows. Drawings, scanned text, thumbnails and clock_motion (a
# blank wall for the most part) are left out too.
PHOTOGRAPHS = (
    Photograph("astronaut", "skimage", "data/astronaut.png", 512, 512),
    Photograph("brick", "skimage", "data/brick.png", 512, 512),
    Photograph("camera", "skimage", "data/camera.png", 512, 512),
    Photograph("cell", "skimage", "data/cell.png", 550, 660),
    Photograph("chelsea", "skimage", "data/chelsea.png", 451, 300),
    Photograph("china", "sklearn", "datasets/images/china.jpg", 640, 427),
    Photograph("coffee", "skimage", "data/coffee.png", 600, 400),
    Photograph("coins", "skimage", "data/coins.png", 384, 303),
    Photograph("flower", "sklearn", "datasets/images/flower.jpg", 640, 427),
    Photograph("grass", "skimage", "data/grass.png", 512, 512),
    Photograph("gravel", "skimage", "data/gravel.png", 512, 512),
    Photograph("hubble", "skimage", "data/hubble_deep_field.jpg", 1000, 872),
    Photograph("ihc", "skimage", "data/ihc.png", 512, 512),
    Photograph("moon", "skimage", "data/moon.png", 512, 512),
    Photograph("motorcycle", "skimage", "data/motorcycle_left.png", 741, 500),
    Photograph("retina", "skimage", "data/retina.jpg", 1411, 1411),
    Photograph("rocket", "skimage", "data/rocket.jpg", 640, 427),
)


class Region(NamedTuple):
    """A square of a photograph: `label` is its place in PHOTOGRAPHS, the rest is in the photograph's pixels."""

    label: int
    left: int
    top: int
    side: int


class BundledSource(Source):
    """Regions of the bundled photographs as encoded (PPM, lossless) images; a photograph is decoded once a process.

    Item i is a region of photograph i mod len(PHOTOGRAPHS), so that any leading part is balanced. Raises SourceError for an unknown
    split or when an installed package lacks a picture.
    """

    def __init__(self, spec: str, split: str) -> None:
        if split not in SPLITS:
            raise SourceError(f"{spec!r}: the bundled photographs have no split {split!r}; expected one of {', '.join(SPLITS)}")
        for photograph in PHOTOGRAPHS:
            photograph_file(photograph)
        self.spec = spec
        self.split = split
        self.classes = tuple(photograph.name for photograph in PHOTOGRAPHS)
        self.regions = regions(split)

    def __len__(self) -> int:
        return len(self.regions)

    def __getitem__(self, index: int) -> Example:
        label, left, top, side = self.regions[index]
        pixels = _photograph_pixels(label)[top : top + side, left : left + side]
        if self.split == "query":
            pixels = colour_jitter(pixels, _generator("jitter", index))
        return Example(self._name(index), _header(side) + np.ascontiguousarray(pixels).tobytes(), label)

    def places(self) -> Iterator[tuple[str, int]]:
        """The split in place of a file, and the number of the region."""
        return ((f"bundled:{self.split}", index) for index in range(len(self.regions)))

    def listing(self) -> Iterator[Entry]:
        """An entry a region, with the size of its encoded image."""
        for index, region in enumerate(self.regions):
            yield Entry(self._name(index), len(_header(region.side)) + 3 * region.side**2, region.label)

    def _name(self, index: int) -> str:
        label, left, top, side = self.regions[index]
        return f"{self.classes[label]}@{left},{top},{side}"


def _header(side: int) -> bytes:
    """A portable pixmap is the cheapest lossless file: a short header, then the pixels."""
    return b"P6 %d %d 255\n" % (side, side)


def regions(split: str) -> tuple[Region, ...]:
    """The fixed regions of one split, photographs taking turns and blocks of a photograph taking turns within that."""
    rng = _generator("regions", SPLITS.index(split))
    squares = []
    for turn in range(REGIONS_PER_PHOTOGRAPH[split]):
        for label, photograph in enumerate(PHOTOGRAPHS):
            column, row, span = _BLOCKS[split][turn % len(_BLOCKS[split])]
            left, right = (k * photograph.width // _GRID for k in (column, column + span))
            top, bottom = (k * photograph.height // _GRID for k in (row, row + span))
            shorter = min(right - left, bottom - top)
            side = round(shorter * rng.uniform(_SMALLEST_SIDE[split], 1.0))
            squares.append(Region(label, int(rng.integers(left, right - side + 1)), int(rng.integers(top, bottom - side + 1)), side))
    return tuple(squares)


def colour_jitter(pixels: UInt8[np.ndarray, "H W 3"], rng: np.random.Generator) -> UInt8[np.ndarray, "H W 3"]:
    """Change brightness, contrast, saturation and hue by random amounts (JITTER: factors 1 +- x, hue +- x of a turn).

    All four are one affine map of RGB, so that a region costs one pass: hue turns colours about the grey axis,
    saturation stretches them away from it, contrast stretches everything away from the region's mean grey.
    """
    brightness, contrast, saturation = (1 + JITTER[key] * rng.uniform(-1, 1) for key in ("brightness", "contrast", "saturation"))
    turn = 2 * np.pi * JITTER["hue"] * rng.uniform(-1, 1)
    luma = np.tile(np.array([0.299, 0.587, 0.114]), (3, 1))
    matrix = brightness * contrast * (saturation * _hue_rotation(turn) + (1 - saturation) * luma)
    mean_grey = float(cv2.mean(pixels)[:3] @ luma[0])
    offset = (1 - contrast) * brightness * mean_grey
    # OpenCV rounds and clips to 0..255.
    return np.asarray(cv2.transform(pixels, np.hstack([matrix, np.full((3, 1), offset)]).astype(np.float32)))


def _hue_rotation(angle: float) -> Float[np.ndarray, "3 3"]:
    """Rotation of RGB by `angle` radians about the grey axis (Rodrigues' formula with axis (1, 1, 1) / sqrt 3)."""
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    return np.cos(angle) * np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) / 3 * np.ones((3, 3))


def _generator(purpose: str, number: int) -> np.random.Generator:
    return np.random.default_rng([_SEED, ("regions", "jitter").index(purpose), number])


def photograph_file(photograph: Photograph) -> str:
    """Where a photograph is installed. Raises SourceError when its package or the file is missing."""
    package = importlib.util.find_spec(photograph.package)  # finds the package without importing it
    wheel = {"skimage": "scikit-image", "sklearn": "scikit-learn"}[photograph.package]
    if package is None or not package.submodule_search_locations:
        raise SourceError(f"the bundled photographs need the package {wheel}: pip install {wheel}")
    path = os.path.join(next(iter(package.submodule_search_locations)), photograph.path)
    if not os.path.isfile(path):
        raise SourceError(f"the installed {wheel} has no {photograph.path}; expected the version in requirements.txt")
    return path


@functools.cache
def _photograph_pixels(label: int) -> np.ndarray:
    """A photograph's pixels, decoded once a process. Pillow, so that both backends see the same regions."""
    photograph = PHOTOGRAPHS[label]
    path = photograph_file(photograph)
    with open(path, "rb") as file:
        pixels = decode(file.read(), ImageReading(backend="pil"))
    if pixels.shape[:2] != (photograph.height, photograph.width):
        size = f"{pixels.shape[1]} x {pixels.shape[0]}"
        raise SourceError(f"{path} is {size}, expected {photograph.width} x {photograph.height}: another version of the package?")
    pixels.flags.writeable = False
    return pixels
