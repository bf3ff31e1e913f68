"""Transforms that move an image and its label map together. Random numbers come from the generator that is passed in."""

from __future__ import annotations

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt8, UInt16

from sere_jax.data.crops.views import sample_box
from sere_jax.data.images.reading import Backend
from sere_jax.data.images.resize import crop_and_resize

Box = tuple[int, int, int, int]  # left, top, width, height in pixels


@runtime_checkable
class Transform(Protocol):
    """What becomes of an image and its label map in a training batch. Picklable, because worker processes get a copy."""

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the result."""
        ...

    def __call__(
        self,
        image: UInt8[np.ndarray, "H W c"],
        label_map: UInt16[np.ndarray, "H W"] | None,
        rng: np.random.Generator,
        image_out: UInt8[np.ndarray, "S T c"],
        map_out: UInt16[np.ndarray, "S T"] | None,
    ) -> None:
        """Write the transformed image to `image_out`, and the transformed label map to `map_out`."""
        ...


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """torchvision's RandomResizedCrop, then a mirror image with probability `flip_prob`: the training of linear classifiers.

    `scale` is the crop's share of the image's area, `aspect` the range of its width / height. The label map moves by the nearest
    neighbour, so that no new numbers arise.
    """

    size: int = 224
    scale: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip_prob: float = 0.5
    backend: Backend = "fast"

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the crop."""
        return self.size, self.size

    def __call__(
        self,
        image: UInt8[np.ndarray, "H W c"],
        label_map: UInt16[np.ndarray, "H W"] | None,
        rng: np.random.Generator,
        image_out: UInt8[np.ndarray, "S T c"],
        map_out: UInt16[np.ndarray, "S T"] | None,
    ) -> None:
        """Draw the box, then the flip, and apply both to image and map."""
        height, width = image.shape[:2]
        box = sample_box(height, width, self.scale, self.aspect, rng)
        flip = bool(rng.random() < self.flip_prob)
        crop_and_resize(image, box, flip, image_out, self.backend)
        if label_map is not None and map_out is not None:
            map_out[...] = crop_map(label_map, box, flip, self.shape)


def crop_map(label_map: UInt16[np.ndarray, "H W"], box: Box, flip: bool, shape: tuple[int, int]) -> UInt16[np.ndarray, "S T"]:
    """The box of a label map in another size by the nearest neighbour, then mirrored if `flip`.

    Example:
      >>> crop_map(np.array([[1, 2], [3, 4]], np.uint16), (0, 0, 2, 2), True, (2, 4)).tolist()
      [[2, 2, 1, 1], [4, 4, 3, 3]]
    """
    left, top, width, height = box
    rows, columns = nearest(height, shape[0]), nearest(width, shape[1])
    return label_map[np.ix_(top + rows, left + (columns[::-1] if flip else columns))]


def nearest(old: int, new: int) -> Int[np.ndarray, "new"]:
    """For each of `new` pixels, the one of `old` pixels that its centre lies in: floor((i + 1/2) old / new)."""
    return np.minimum(((np.arange(new) + 0.5) * old / new).astype(np.int64), old - 1)
