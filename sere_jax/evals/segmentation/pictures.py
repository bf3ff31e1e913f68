"""Predictions as files: label maps as PNG with a palette, and panels of image, truth, prediction and error."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np
from jaxtyping import Int, UInt8, UInt16
from PIL import Image

from sere_jax.buckets import Location
from sere_jax.data.annotations.maps import Coding
from sere_jax.evals.figures import canvas
from sere_jax.evals.segmentation.images import MaskedPicture
from sere_jax.evals.segmentation.labelling import NONE, Labelling
from sere_jax.writing import replacing

_IGNORED, _RIGHT, _WRONG = (np.array(colour, np.uint8) for colour in ((224, 224, 224), (236, 240, 243), (200, 30, 45)))  # in the panels
_SIDE = 320  # pixels of a panel's longer side


def colours(labelling: Labelling) -> tuple[UInt8[np.ndarray, "256 3"], bool]:
    """The colours of the numbers 0 to 255, and whether they are the data set's own.

    They are those of its label maps, where these give every class another colour; otherwise PASCAL VOC's. Numbers beyond a short palette
    keep PASCAL VOC's.

    >>> colours(Labelling(("wall", "sky"), palette=bytes([9, 9, 9, 1, 2, 3])))[0][[0, 1, 2]].tolist()
    [[9, 9, 9], [1, 2, 3], [0, 128, 0]]
    """
    levels = np.frombuffer(labelling.palette[: 3 * 256], np.uint8)
    palette = levels[: len(levels) // 3 * 3].reshape(-1, 3)
    numbers = labelling.numbers(np.arange(len(labelling.classes))[None])[0]
    if numbers.max(initial=0) >= len(palette) or len(np.unique(palette[numbers], axis=0)) < len(numbers):
        return voc_palette(), False
    return np.concatenate([palette, voc_palette()[len(palette) :]]), True


def voc_palette() -> UInt8[np.ndarray, "256 3"]:
    """The colours that PASCAL VOC gives to the numbers 0 to 255: bits 0, 3 and 6 of a number are red's highest, and so on.

    >>> voc_palette()[[0, 1, 15, 255]].tolist()
    [[0, 0, 0], [128, 0, 0], [192, 128, 128], [224, 224, 192]]
    """
    numbers = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= ((numbers >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return palette


def encode_map(
    numbers: UInt16[np.ndarray, "H W"], coding: Coding | None = None, palette: UInt8[np.ndarray, "256 3"] | None = None
) -> bytes:
    """A label map as PNG: indices of a palette, by default PASCAL VOC's, or RGB with red + 256 green (ImageNet-S).

    `coding=None` takes the latter where a number is above 255.
    """
    if coding == "index" or (coding is None and numbers.max(initial=0) < 256):
        picture = Image.fromarray(numbers.astype(np.uint8), "P")
        picture.putpalette((voc_palette() if palette is None else palette).tobytes())
    else:
        picture = Image.fromarray(np.stack([numbers % 256, numbers // 256, np.zeros_like(numbers)], axis=-1).astype(np.uint8))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


class PictureFiles:
    """Writes predictions of one network while its images are read.

    Args:
      directory: of the PNG files, which lie there as the images do in their source; None writes none.
      count: number of the first images that the panels show.
    """

    def __init__(self, labelling: Labelling, *, directory: Location | None = None, count: int = 0) -> None:
        self._labelling, self._directory, self._count = labelling, directory, count
        self._palette, of_the_set = colours(labelling)
        self._palette_of = "the label maps" if of_the_set else "PASCAL VOC"
        self._panels: list[tuple[str, list[np.ndarray]]] = []

    def add(self, picture: MaskedPicture, predicted: Int[np.ndarray, "H W"]) -> None:
        """Write one prediction, and keep it if the panels show it."""
        if self._directory is not None:
            name = PurePosixPath(picture.name)
            parts = [part for part in name.with_suffix(".png").parts if part not in ("/", "..")]
            with replacing(self._directory.joinpath(*parts)) as temporary:
                temporary.write_bytes(encode_map(self._labelling.numbers(predicted), palette=self._palette))
        if len(self._panels) < self._count:
            self._panels.append((picture.name, panels(picture, predicted, self._labelling)))

    def draw(self, path: Location, title: str, about: Sequence[str] = ()) -> None:
        """Write the panels as one figure; nothing without images."""
        if not self._panels:
            return
        figure, axes = canvas.grid(
            len(self._panels),
            4,
            title=title,
            note=f"Classes have the colours of {self._palette_of}; ignored pixels are grey. Errors are red.",
            about=about,
            headings=[["image", "truth", "prediction", "error"]],
        )
        for line, (name, pictures) in zip(axes, self._panels, strict=True):
            canvas.row_label(line[0], name)
            for axis, pixels in zip(line, pictures, strict=True):
                canvas.picture(axis, pixels)
        canvas.save(figure, path)


def panels(picture: MaskedPicture, predicted: Int[np.ndarray, "H W"], labelling: Labelling) -> list[UInt8[np.ndarray, "h w c"]]:
    """Image, truth, prediction and error, at most 320 pixels wide and high. Classes have the colours of the files with predictions."""
    step = max(1, -(-max(picture.shape) // _SIDE))
    pixels, truth, predicted = (x[::step, ::step] for x in (picture.pixels, picture.truth, predicted))
    ignored = (truth == NONE)[..., None]
    palette, _ = colours(labelling)
    shown = [palette[labelling.numbers(np.maximum(classes, 0)) % 256] for classes in (truth, predicted)]
    shown[0] = np.where(ignored, _IGNORED, shown[0])
    error = np.where((truth == predicted)[..., None], _RIGHT, _WRONG)
    return [canvas.shown(pixels), *shown, np.where(ignored, _IGNORED, error)]
