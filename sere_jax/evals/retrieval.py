"""Which photograph is this patch from? k-NN on photographs without labels: every photograph is its own class.

Gallery regions are cut from the left part of a photograph and query regions from the right, so that no pixel is in
both; a query's colours may be jittered, so that colour alone does not answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from sere_jax.data.decode import BadImage, decode
from sere_jax.data.eval_input import EvalBatch
from sere_jax.evals.network import EvalError


class Photographs(Protocol):
    """What is needed of a `data.sources.Source`."""

    def __len__(self) -> int: ...
    def __getitem__(self, i: int, /) -> Any: ...


class Regions(NamedTuple):
    """Which regions are cut. Everything drawn at random is a function of (seed, photograph, side, region)."""

    per_photo: int = 8  # of each side
    scale: tuple[float, float] = (0.1, 0.4)  # area of a region as a fraction of its half of the photograph
    jitter: float = 0.4  # of the queries' brightness, contrast and saturation: factors in [1 - jitter, 1 + jitter]
    seed: int = 0


def region_box(height: int, width: int, right: bool, scale: tuple[float, float], rng: np.random.Generator) -> tuple[int, int, int, int]:
    """A square of random area and place inside the left or the right half: (left, top, right, bottom) in pixels.

    The halves are floor(width / 2) wide and share no column. The square's area is `scale` x the half's area, cut down to
    the largest square that fits.
    """
    half = width // 2
    side = int(math.sqrt(rng.uniform(*scale) * half * height))
    side = max(1, min(side, half, height))
    x = int(rng.integers(half - side + 1)) + (width - half if right else 0)
    y = int(rng.integers(height - side + 1))
    return x, y, x + side, y + side


def jitter(image: UInt8[np.ndarray, "H W 3"], strength: float, rng: np.random.Generator) -> UInt8[np.ndarray, "H W 3"]:
    """Scale saturation, contrast and brightness, in this order, by factors uniform in [1 - strength, 1 + strength]."""
    saturation, contrast, brightness = rng.uniform(1 - strength, 1 + strength, 3)
    pixels = image.astype(np.float32)
    gray = _luma(pixels)
    pixels = gray[..., None] + saturation * (pixels - gray[..., None])
    level = _luma(pixels).mean()
    pixels = brightness * (level + contrast * (pixels - level))
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def _luma(pixels: Float[np.ndarray, "H W 3"]) -> Float[np.ndarray, "H W"]:
    return pixels @ np.asarray([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


def region_batches(
    source: Photographs, *, queries: bool, size: int, regions: Regions, batch_size: int, max_pixels: int = 50_000_000
) -> Iterator[EvalBatch]:
    """Regions of every photograph as `EvalBatch`es of one size, the last one padded; label = the photograph's number.

    Raises EvalError for fewer than two photographs, and for one that cannot be decoded (a retrieval score over another
    set than the one that was named would mislead).
    """
    if len(source) < 2:
        raise EvalError(f"source: found {len(source)} photographs; expected at least 2")
    images = np.zeros((batch_size, size, size, 3), np.uint8)
    labels = np.full(batch_size, -1, np.int32)
    total = len(source) * regions.per_photo
    for position, (label, region) in enumerate(_regions(source, queries, size, regions, max_pixels)):
        slot = position % batch_size
        images[slot], labels[slot] = region, label
        if slot == batch_size - 1 or position == total - 1:
            index = position - slot + np.arange(batch_size, dtype=np.int32)
            yield EvalBatch(images.copy(), labels.copy(), index, np.arange(batch_size) <= slot)


def _regions(source: Photographs, queries: bool, size: int, regions: Regions, max_pixels: int) -> Iterator[tuple[int, np.ndarray]]:
    for photo in range(len(source)):
        example = source[photo]
        try:
            picture = Image.fromarray(decode(example.data, backend="pil", max_pixels=max_pixels))
        except BadImage as error:
            raise EvalError(f"source: {example.name} cannot be read ({error}); remove it or name another folder") from error
        for number in range(regions.per_photo):
            rng = np.random.default_rng([regions.seed, photo, int(queries), number])
            box = region_box(picture.height, picture.width, queries, regions.scale, rng)
            cut = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC, box=box))
            yield photo, jitter(cut, regions.jitter, rng) if queries and regions.jitter else cut
