"""RandAugment on the host with Pillow: some of fifteen operations on an image, at magnitudes drawn around a set one.

The operations and their magnitudes are those that DeiT and MAE fine-tune with, known as `rand-m9-mstd0.5-inc1`: every operation grows
stronger with the magnitude. Source: Cubuk et al. 2020.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image, ImageEnhance, ImageOps

from sere_jax.data.annotations.transforms import RandomCrop

HIGHEST = 10.0  # magnitude
_BICUBIC = Image.Resampling.BICUBIC

Fill = tuple[int, ...]  # the level of each channel outside the image
Operation = Callable[[Image.Image, float, Fill], Image.Image]  # image, signed strength, fill


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """`operations` draws, with replacement, from `OPERATIONS`; each is applied with probability `prob`.

    Attributes:
      magnitude: from 0 to 10.
      deviation: every applied operation has a magnitude of its own, drawn from N(magnitude, deviation) and clipped to [0, 10].
      fill: the level of each channel for what comes from outside the image; usually the mean of the data.
    """

    magnitude: float = 9.0
    deviation: float = 0.5
    operations: int = 2
    prob: float = 0.5
    fill: Fill = (124, 116, 104)

    def __call__(self, image: UInt8[np.ndarray, "H W c"], rng: np.random.Generator) -> UInt8[np.ndarray, "H W c"]:
        """The changed image. Raises ValueError for images that have neither one nor three channels."""
        names = [tuple(OPERATIONS)[rng.integers(len(OPERATIONS))] for _ in range(self.operations)]
        picture = _picture(image)
        for name in names:
            if rng.random() < self.prob:
                magnitude = float(np.clip(rng.normal(self.magnitude, self.deviation), 0.0, HIGHEST))
                picture = OPERATIONS[name](picture, signed(name, magnitude, rng), self.fill)
        return np.asarray(picture).reshape(image.shape)


def signed(name: str, magnitude: float, rng: np.random.Generator) -> float:
    """The magnitude, made negative with probability 1/2 where the operation has a direction."""
    return -magnitude if name in DIRECTED and rng.random() < 0.5 else magnitude


def apply(name: str, image: UInt8[np.ndarray, "H W c"], magnitude: float, fill: Fill) -> UInt8[np.ndarray, "H W c"]:
    """One operation at a magnitude between -10 and 10.

    >>> apply("invert", np.full((1, 1, 3), 55, np.uint8), 9.0, (0, 0, 0)).tolist()
    [[[200, 200, 200]]]
    """
    return np.asarray(OPERATIONS[name](_picture(image), magnitude, fill)).reshape(image.shape)


def _picture(image: UInt8[np.ndarray, "H W c"]) -> Image.Image:
    channels = image.shape[2]
    if channels not in (1, 3):
        raise ValueError(f"RandAugment: found images of {channels} channels, expected 1 or 3")
    return Image.fromarray(image if channels == 3 else image[..., 0])


def _autocontrast(image: Image.Image, magnitude: float, fill: Fill) -> Image.Image:
    return ImageOps.autocontrast(image)


def _equalize(image: Image.Image, magnitude: float, fill: Fill) -> Image.Image:
    return ImageOps.equalize(image)


def _invert(image: Image.Image, magnitude: float, fill: Fill) -> Image.Image:
    return ImageOps.invert(image)


def _rotate(image: Image.Image, magnitude: float, fill: Fill) -> Image.Image:
    """By 3 degrees a unit of magnitude."""
    return image.rotate(3.0 * magnitude, resample=_BICUBIC, fillcolor=_colour(image, fill))


def _posterize(image: Image.Image, magnitude: float, fill: Fill) -> Image.Image:
    """Keep the highest 4 - floor(0.4 magnitude) bits of each level."""
    kept = 4 - int(0.4 * magnitude)
    mask = 0xFF & ~(0xFF >> kept)  # none at the highest magnitude, which Pillow's own function refuses
    return image.point([level & mask for level in range(256)] * len(image.getbands()))


def _solarize(image: Image.Image, magnitude: float, fill: Fill) -> Image.Image:
    """Invert the levels from 256 - floor(25.6 magnitude) on."""
    threshold = 256 - int(25.6 * magnitude)
    return image.point([level if level < threshold else 255 - level for level in range(256)] * len(image.getbands()))


def _solarize_add(image: Image.Image, magnitude: float, fill: Fill) -> Image.Image:
    """Add floor(11 magnitude), at most to 255, to the levels below 128."""
    added = min(128, int(11 * magnitude))
    return image.point([min(255, level + added) if level < 128 else level for level in range(256)] * len(image.getbands()))


def _enhance(image: Image.Image, magnitude: float, fill: Fill, *, of: Callable[[Image.Image], ImageEnhance._Enhance]) -> Image.Image:
    """By the factor 1 + 0.09 magnitude; the factor 1 leaves the image as it is."""
    return of(image).enhance(1.0 + 0.09 * magnitude)


def _move(image: Image.Image, fill: Fill, matrix: tuple[float, ...]) -> Image.Image:
    """The pixel at (x, y) comes from (a x + b y + c, d x + e y + f)."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=_BICUBIC, fillcolor=_colour(image, fill))


def _shear_x(image: Image.Image, magnitude: float, fill: Fill) -> Image.Image:
    return _move(image, fill, (1.0, 0.03 * magnitude, 0.0, 0.0, 1.0, 0.0))


def _shear_y(image: Image.Image, magnitude: float, fill: Fill) -> Image.Image:
    return _move(image, fill, (1.0, 0.0, 0.0, 0.03 * magnitude, 1.0, 0.0))


def _translate_x(image: Image.Image, magnitude: float, fill: Fill) -> Image.Image:
    """By 4.5 % of the width a unit of magnitude."""
    return _move(image, fill, (1.0, 0.0, 0.045 * magnitude * image.width, 0.0, 1.0, 0.0))


def _translate_y(image: Image.Image, magnitude: float, fill: Fill) -> Image.Image:
    """By 4.5 % of the height a unit of magnitude."""
    return _move(image, fill, (1.0, 0.0, 0.0, 0.0, 1.0, 0.045 * magnitude * image.height))


def _colour(image: Image.Image, fill: Fill) -> tuple[int, ...] | int:
    return fill if len(image.getbands()) > 1 else fill[0]


OPERATIONS: dict[str, Operation] = {
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "invert": _invert,
    "rotate": _rotate,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "color": functools.partial(_enhance, of=ImageEnhance.Color),
    "contrast": functools.partial(_enhance, of=ImageEnhance.Contrast),
    "brightness": functools.partial(_enhance, of=ImageEnhance.Brightness),
    "sharpness": functools.partial(_enhance, of=ImageEnhance.Sharpness),
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
}
DIRECTED = {"rotate", "color", "contrast", "brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y"}


@dataclasses.dataclass(frozen=True)
class AugmentedCrop:
    """A random crop, mirrored at random, then RandAugment (None: none). A `Transform` for images without label maps."""

    crop: RandomCrop
    rand_augment: RandAugment | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the crop."""
        return self.crop.shape

    def __call__(
        self,
        image: UInt8[np.ndarray, "H W c"],
        label_map: UInt16[np.ndarray, "H W"] | None,
        rng: np.random.Generator,
        image_out: UInt8[np.ndarray, "S T c"],
        map_out: UInt16[np.ndarray, "S T"] | None,
    ) -> None:
        """Write the augmented crop to `image_out`. Raises ValueError for a label map: it would not move with the image."""
        if label_map is not None:
            raise ValueError("AugmentedCrop: found a label map, expected images with classes alone")
        self.crop(image, None, rng, image_out, None)
        if self.rand_augment is not None:
            image_out[...] = self.rand_augment(image_out, rng)
