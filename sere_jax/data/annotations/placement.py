"""Detection's transforms: an image and its objects cropped, resized and mirrored together.

A transform only draws a `Placement`; image, boxes and masks then follow it, so that they cannot part. Sizes are DETR's multi-scale
training as MMDetection does it (Carion et al. 2020), with one difference: the image is resized once, from the pixels that the crop
covers, and not a second time after the crop.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, UInt8

from sere_jax.data.annotations.regions import decode_region
from sere_jax.data.annotations.scale_crop import fitted, resized
from sere_jax.data.annotations.transforms import Box
from sere_jax.data.sources.annotation import Instance, Size
from sere_jax.data.sources.with_objects import trainable
from sere_jax.types import MASK_SIDE, Objects

_SMALLEST = 1.0  # side of a box in pixels of the placed image; what is smaller is left out


class Placement(NamedTuple):
    """A part of an image and what becomes of it: the crop (left, top, width, height) in pixels, its new size, then a mirror image."""

    crop: Box
    size: Size
    flip: bool = False

    def image(self, image: UInt8[np.ndarray, "H W c"]) -> UInt8[np.ndarray, "S T c"]:
        """The crop of the image in the new size, by OpenCV's bilinear interpolation."""
        left, top, width, height = self.crop
        placed = resized(np.ascontiguousarray(image[top : top + height, left : left + width]), *self.size)
        return placed[:, ::-1] if self.flip else placed

    def boxes(self, boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
        """Boxes (left, top, right, bottom) of the image where they come to lie; they may reach outside.

        >>> Placement((10, 0, 20, 10), (20, 40), flip=True).boxes(np.array([[10.0, 0.0, 20.0, 5.0]])).tolist()
        [[20.0, 0.0, 40.0, 10.0]]
        """
        left, top, width, height = self.crop
        rows, columns = self.size
        moved = (boxes - [left, top, left, top]) * np.array([columns / width, rows / height] * 2)
        if self.flip:
            moved[:, [0, 2]] = columns - moved[:, [2, 0]]
        return moved

    def back(self, boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
        """The inverse of `boxes`."""
        left, top, width, height = self.crop
        rows, columns = self.size
        if self.flip:
            boxes = np.stack([columns - boxes[:, 2], boxes[:, 1], columns - boxes[:, 0], boxes[:, 3]], axis=-1)
        return boxes * np.array([width / columns, height / rows] * 2) + [left, top, left, top]

    def inside(self, limits: Size) -> Placement:
        """The same crop, made smaller with its proportions kept until it is at most `limits` (height, width) large."""
        factor = min(limit / side for limit, side in zip(limits, self.size, strict=True))
        return self if factor >= 1 else self._replace(size=(max(1, int(self.size[0] * factor)), max(1, int(self.size[1] * factor))))


@runtime_checkable
class Placing(Protocol):
    """Draws where an image of a height and width is placed. Picklable, because worker processes get a copy."""

    def __call__(self, shape: Size, rng: np.random.Generator) -> Placement: ...


@dataclasses.dataclass(frozen=True)
class MultiScale:
    """A mirror image, then either another size, or a crop in another size.

    With probability `crop_prob` the image is thought of in a size of `before_crop`, and each side of the crop is drawn from `crop_range`
    (the image's own side where that is smaller). Otherwise the whole image is the crop. The crop then gets a shorter side of `sizes`.

    Attributes:
      sizes: shorter sides of the result, in pixels.
      longest: the longer side is at most so long, and the shorter side shrinks with it.
      before_crop: shorter sides of the image that is cropped.
      crop_range: least and largest height and width of the crop.
    """

    sizes: tuple[int, ...] = tuple(range(480, 801, 32))
    longest: int = 1333
    before_crop: tuple[int, ...] = (400, 500, 600)
    crop_range: tuple[int, int] = (384, 600)
    crop_prob: float = 0.5
    flip_prob: float = 0.5

    def __call__(self, shape: Size, rng: np.random.Generator) -> Placement:
        """Draw flip, crop and size."""
        height, width = shape
        flip = bool(rng.random() < self.flip_prob)
        crop, cut = (0, 0, width, height), shape
        if rng.random() < self.crop_prob:
            crop, cut = self._crop(shape, rng)
        return Placement(crop, fitted(cut, (self.longest, int(rng.choice(self.sizes)))), flip)

    def _crop(self, shape: Size, rng: np.random.Generator) -> tuple[Box, Size]:
        """The crop in pixels of the image, and its height and width in the size that it was drawn in."""
        before = fitted(shape, (self.longest, int(rng.choice(self.before_crop))))
        low, high = self.crop_range
        cut = tuple(int(rng.integers(min(side, low), min(side, high) + 1)) for side in before)
        starts = [int(rng.integers(side - length + 1)) for side, length in zip(before, cut, strict=True)]
        spans = []
        for start, length, side, whole in zip(starts, cut, before, shape, strict=True):
            first = min(round(start * whole / side), whole - 1)
            spans.append((first, max(1, min(round((start + length) * whole / side), whole) - first)))
        (top, height), (left, width) = spans
        return (left, top, width, height), (cut[0], cut[1])


@dataclasses.dataclass(frozen=True)
class WholeImage:
    """The whole image with a shorter side of `size`, or less where the longer one would be above `longest`: the test transform.

    >>> WholeImage()((480, 640), np.random.default_rng()).size, WholeImage()((400, 1000), np.random.default_rng()).size
    ((800, 1067), (533, 1333))
    """

    size: int = 800
    longest: int = 1333

    def __call__(self, shape: Size, rng: np.random.Generator | None = None) -> Placement:
        """The placement; nothing is drawn."""
        return Placement((0, 0, shape[1], shape[0]), fitted(shape, (self.longest, self.size)))


def place_objects(
    instances: Sequence[Instance], frame: Size, shape: Size, placement: Placement, *, count: int, masks: bool, side: int = MASK_SIDE
) -> Objects:
    """The trainable objects of an image of this shape (height, width) where a placement puts them, padded to `count`.

    `frame` is what boxes and segmentations are measured in. A box that is cut by the crop is drawn anew around what is left of
    its mask (without masks it is only cut: MMDetection does so with masks too). Objects of which no mask is left and boxes with a
    side below a pixel are left out, and of more than `count` objects those with the smallest boxes. Raises BadImage for a segmentation
    that cannot be decoded.
    """
    scale = np.array([shape[1] / frame[1], shape[0] / frame[0]] * 2)
    rows, columns = placement.size
    limits = np.array([columns, rows] * 2)
    placed = []
    for instance in filter(trainable, instances):
        whole = placement.boxes(np.array([instance.box]) * scale)
        boxes = np.clip(whole, 0, limits)
        if not _large(boxes[0]):
            continue
        cells = None
        if masks:
            region = decode_region(instance.segmentation, *frame)
            if np.any(boxes != whole):
                boxes = _tightened(boxes, region, placement, scale)
            if not _large(boxes[0]):
                continue
            cells = _cells(region, boxes[0], placement, scale, side)
            if not cells.any():
                continue
        placed.append((boxes[0], instance.label, cells))
    placed.sort(key=lambda one: -_area(one[0]))
    return _padded(placed[:count], count, side if masks else 0)


def no_objects(count: int, side: int) -> Objects:
    """`count` objects that are not valid; `side` is that of their masks, 0 for none."""
    cells = np.zeros((count, side, side), np.bool_) if side else None
    return Objects(np.zeros((count, 4), np.float32), np.zeros(count, np.int32), np.zeros(count, np.bool_), cells)


def _padded(placed: list[tuple[np.ndarray, int, np.ndarray | None]], count: int, side: int) -> Objects:
    result = no_objects(count, side)
    for row, (box, label, cells) in enumerate(placed):
        result.boxes[row], result.labels[row], result.valid[row] = box, label, True
        if result.masks is not None:
            result.masks[row] = cells
    return result


def _tightened(
    boxes: Float[np.ndarray, "1 4"], region: Bool[np.ndarray, "H W"], placement: Placement, scale: np.ndarray
) -> Float[np.ndarray, "1 4"]:
    """The box without the margins in which its mask has no pixel; an empty box where it has none at all."""
    first = placement.back(boxes)[0] / scale
    left, top, right, bottom = (int(number) for number in (*np.floor(first[:2] + 1e-6), *np.ceil(first[2:] - 1e-6)))
    covered = region[top:bottom, left:right]
    rows, columns = np.flatnonzero(covered.any(axis=1)), np.flatnonzero(covered.any(axis=0))
    if not len(rows):
        return np.zeros((1, 4))
    pixels = np.array([[left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1]], np.float64)
    around = placement.boxes(pixels * scale)
    return np.concatenate([np.maximum(boxes[:, :2], around[:, :2]), np.minimum(boxes[:, 2:], around[:, 2:])], axis=1)


def _cells(region: Bool[np.ndarray, "H W"], box: np.ndarray, placement: Placement, scale: np.ndarray, side: int) -> Bool[np.ndarray, "m m"]:
    """The mask on a grid over the box: each cell is the pixel of the region that its centre lies in."""
    centres = (np.arange(side) + 0.5) / side
    x, y = box[0] + centres * (box[2] - box[0]), box[1] + centres * (box[3] - box[1])
    points = placement.back(np.stack([x, y, x, y], axis=-1)) / scale
    rows, columns = (np.clip(np.floor(points[:, axis]).astype(int), 0, region.shape[1 - axis] - 1) for axis in (1, 0))
    return region[np.ix_(rows, columns)]


def _large(box: np.ndarray) -> bool:
    return bool(box[2] - box[0] >= _SMALLEST and box[3] - box[1] >= _SMALLEST)


def _area(box: np.ndarray) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))
