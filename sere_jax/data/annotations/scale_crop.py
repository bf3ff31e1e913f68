"""Training crops of segmentation: the image in a random size, a square of it, a flip, changed colours. Image and map move together."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
from jaxtyping import UInt8, UInt16

from sere_jax.data.annotations.transforms import nearest

_TRIES = 10  # crops that are drawn until no class covers too much


@dataclasses.dataclass(frozen=True)
class ScaleCrop:
    """The training transform of MMSegmentation: fit into `limits` times a factor from `ratios`, crop, mirror, change colours, pad.

    The image is resized with its proportions kept, so that its longer side is at most the larger of `limits` and the shorter at most
    the smaller one, both times the factor. Of up to ten crops the first is taken in which no class covers more than `most_of_a_class`
    of the pixels that count and there are at least two classes. What lies outside the image is `fill` and `ignored`.

    Attributes:
      size: side of the crop in pixels.
      distortion: brightness by up to 32 levels, contrast and saturation by 0.5 to 1.5, hue by up to 18 of 180, each with probability 1/2.
      fill: level of each channel outside the image; the mean, which becomes 0 when the images are normalised.
      ignored: a number in the label map that no loss counts.
      others_ignored: the other such numbers: 0 of ADE20K, which MMSegmentation turns into 255 before it crops.
    """

    size: int = 512
    limits: tuple[int, int] = (2048, 512)
    ratios: tuple[float, float] = (0.5, 2.0)
    most_of_a_class: float = 0.75
    flip_prob: float = 0.5
    distortion: bool = True
    fill: tuple[int, ...] = (124, 116, 104)
    ignored: int = 255
    others_ignored: tuple[int, ...] = ()

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
        """Draw size, crop, flip and colours, and apply them. A label map is needed. Raises ValueError without one."""
        if label_map is None or map_out is None:
            raise ValueError("ScaleCrop moves label maps with images; found none")
        height, width = fitted((image.shape[0], image.shape[1]), self.limits, rng.uniform(*self.ratios))
        image = resized(image, height, width)
        label_map = label_map[np.ix_(nearest(label_map.shape[0], height), nearest(label_map.shape[1], width))]
        rows, columns = self._crop(label_map, rng)
        image, label_map = image[rows, columns], label_map[rows, columns]
        if rng.random() < self.flip_prob:
            image, label_map = image[:, ::-1], label_map[:, ::-1]
        if self.distortion:
            image = distorted(np.ascontiguousarray(image), rng)
        image_out[...], map_out[...] = self.fill, self.ignored
        image_out[: image.shape[0], : image.shape[1]] = image
        map_out[: image.shape[0], : image.shape[1]] = label_map

    def _crop(self, label_map: np.ndarray, rng: np.random.Generator) -> tuple[slice, slice]:
        for _ in range(_TRIES):
            top, left = (int(rng.integers(max(side - self.size, 0) + 1)) for side in label_map.shape)
            rows, columns = slice(top, top + self.size), slice(left, left + self.size)
            pixels = np.unique(label_map[rows, columns], return_counts=True)
            counts = pixels[1][~np.isin(pixels[0], (self.ignored, *self.others_ignored))]
            if len(counts) > 1 and counts.max() / counts.sum() < self.most_of_a_class:
                break
        return rows, columns


def fitted(shape: tuple[int, int], limits: tuple[int, int], factor: float = 1.0) -> tuple[int, int]:
    """Height and width of an image of `shape`, proportions kept, that fits into the limits of longer and shorter side times a factor.

    >>> fitted((300, 400), (2048, 512)), fitted((100, 1000), (2048, 512), 0.5)
    ((512, 683), (102, 1024))
    """
    height, width = shape
    scale = factor * min(max(limits) / max(height, width), min(limits) / min(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resized(image: UInt8[np.ndarray, "H W c"], height: int, width: int) -> UInt8[np.ndarray, "S T c"]:
    """OpenCV's bilinear interpolation, without antialiasing, as MMSegmentation resizes."""
    result = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(result, np.uint8).reshape(height, width, -1)


def distorted(image: UInt8[np.ndarray, "H W c"], rng: np.random.Generator) -> UInt8[np.ndarray, "H W c"]:
    """Brightness; contrast before or after saturation and hue; each with probability 1/2. Colours need three channels."""
    all_draws = rng.random(5) < 0.5
    brightness, contrast_first, contrast, saturation, hue = (bool(draw) for draw in all_draws)
    shift, factor, colour, turn = rng.uniform(-32, 32), rng.uniform(0.5, 1.5), rng.uniform(0.5, 1.5), int(rng.integers(-18, 18))
    if brightness:
        image = _levels(image, 1.0, shift)
    if contrast and contrast_first:
        image = _levels(image, factor, 0.0)
    if image.shape[2] == 3 and (saturation or hue):
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        if saturation:
            hsv[..., 1] = _levels(hsv[..., 1], colour, 0.0)
        if hue:
            hsv[..., 0] = (hsv[..., 0].astype(np.int32) + turn) % 180
        image = np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), np.uint8)
    return _levels(image, factor, 0.0) if contrast and not contrast_first else image


def _levels(image: np.ndarray, factor: float, shift: float) -> np.ndarray:
    return np.clip(image.astype(np.float32) * factor + shift, 0, 255).astype(np.uint8)
