"""The multi-crop recipe: where each view lies in the source image, whether it is mirrored, and its resized pixels.

Only geometry happens here; colours change on the device. All randomness comes from the generator that is passed in, in a
fixed order (per view: the box, then the flip), so that a view is a function of that generator's key alone.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

from sere_jax.data.images.reading import Backend
from sere_jax.data.images.resize import Softened, crop_and_resize


@dataclasses.dataclass(frozen=True)
class ViewRecipe:
    """Sizes in pixels, scales as shares of the source's area, aspect as the range of width / height (SPEC: DINO's recipe).

    A size is a view's height; its width is the same where the `_width` is 0. The aspect of a crop is drawn around that of its
    view, so that views of any shape are distorted alike.
    """

    global_size: int = 224
    global_scale: tuple[float, float] = (0.35, 1.0)
    local_count: int = 4
    local_size: int = 96
    local_scale: tuple[float, float] = (0.05, 0.35)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip_prob: float = 0.5
    global_count: int = 2  # the methods that compare views pair exactly two; MAE looks at one
    global_width: int = 0
    local_width: int = 0

    @property
    def count(self) -> int:
        """Views per image, global crops first."""
        return self.global_count + self.local_count

    @property
    def global_shape(self) -> tuple[int, int]:
        """Height and width of the global crops."""
        return self.global_size, self.global_width or self.global_size

    @property
    def local_shape(self) -> tuple[int, int]:
        """Height and width of the local crops."""
        return self.local_size, self.local_width or self.local_size


class ImageViews(NamedTuple):
    """The views of one image, as `sere_jax.types.Views` without its batch axis."""

    global_views: UInt8[np.ndarray, "v H W c"]
    local_views: UInt8[np.ndarray, "l S T c"]
    boxes: Float[np.ndarray, "n 4"]
    flips: Bool[np.ndarray, "n"]


def empty_views(recipe: ViewRecipe, *leading: int, channels: int = 3) -> ImageViews:
    """Uninitialised arrays for the views of one image, or with `leading` axes those of a batch."""
    return ImageViews(
        np.empty((*leading, recipe.global_count, *recipe.global_shape, channels), np.uint8),
        np.empty((*leading, recipe.local_count, *recipe.local_shape, channels), np.uint8),
        np.empty((*leading, recipe.count, 4), np.float32),
        np.empty((*leading, recipe.count), np.bool_),
    )


def make_views(
    image: UInt8[np.ndarray, "H W c"],
    recipe: ViewRecipe,
    rng: np.random.Generator,
    backend: Backend = "fast",
    out: ImageViews | None = None,
) -> ImageViews:
    """`global_count` global and `local_count` local crops of one image; written to `out`, the row of a batch, or to new arrays."""
    out = empty_views(recipe, channels=image.shape[2]) if out is None else out
    height, width = image.shape[:2]
    softened = Softened(image)
    for n in range(recipe.count):
        scale = recipe.global_scale if n < recipe.global_count else recipe.local_scale
        rows, columns = recipe.global_shape if n < recipe.global_count else recipe.local_shape
        aspect = recipe.aspect[0] * columns / rows, recipe.aspect[1] * columns / rows
        box = sample_box(height, width, scale, aspect, rng)
        flip = bool(rng.random() < recipe.flip_prob)
        out.boxes[n] = box
        out.flips[n] = flip
        pixels = out.global_views[n] if n < recipe.global_count else out.local_views[n - recipe.global_count]
        crop_and_resize(softened, box, flip, pixels, backend)
    return out


def sample_box(
    height: int, width: int, scale: tuple[float, float], aspect: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """A random crop (left, top, width, height) in whole source pixels: torchvision's RandomResizedCrop.

    Area ~ U(scale) of the image, log(width / height) ~ U(log aspect); sides sqrt(area * r) and sqrt(area / r), rounded. A
    box that does not fit is drawn again, ten times in all; then the largest centred box whose aspect is within the range, or comes
    nearest to it in images a few pixels wide or high.
    """
    low, high = math.log(aspect[0]), math.log(aspect[1])
    for _ in range(10):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * rng.random())
        ratio = math.exp(low + (high - low) * rng.random())
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h
    w, h = width, height
    if width / height < aspect[0]:
        h = max(1, round(width / aspect[0]))
    elif width / height > aspect[1]:
        w = max(1, round(height * aspect[1]))
    return (width - w) // 2, (height - h) // 2, w, h
