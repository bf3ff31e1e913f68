"""Which photograph is this patch from? k-NN on photographs without labels: every photograph is its own class.

Gallery regions are cut from the left part of a photograph and query regions from the right, so that no pixel is in
both; a query's colours may be jittered, so that colour alone does not answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from sere_jax.data.batches.whole_images import EvalBatch
from sere_jax.data.images.reading import DEFAULT_READING, ImageReading
from sere_jax.data.sources.example import Source
from sere_jax.data.sources.open import open_source
from sere_jax.evals.frozen import comparison
from sere_jax.evals.frozen.comparison import ImageSet
from sere_jax.evals.frozen.views import read_image
from sere_jax.evals.network import EvalError, Network


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
    source: Source, *, queries: bool, size: int, regions: Regions, batch_size: int, reading: ImageReading = DEFAULT_READING
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
    for position, (label, region) in enumerate(_regions(source, queries, size, regions, reading)):
        slot = position % batch_size
        images[slot], labels[slot] = region, label
        if slot == batch_size - 1 or position == total - 1:
            index = position - slot + np.arange(batch_size, dtype=np.int32)
            yield EvalBatch(images.copy(), labels.copy(), index, np.arange(batch_size) <= slot)


def _regions(source: Source, queries: bool, size: int, regions: Regions, reading: ImageReading) -> Iterator[tuple[int, np.ndarray]]:
    for photo in range(len(source)):
        picture = Image.fromarray(read_image(source, photo, reading))
        for number in range(regions.per_photo):
            rng = np.random.default_rng([regions.seed, photo, int(queries), number])
            box = region_box(picture.height, picture.width, queries, regions.scale, rng)
            cut = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC, box=box))
            yield photo, jitter(cut, regions.jitter, rng) if queries and regions.jitter else cut


class Settings(NamedTuple):
    """Which photographs, how they are cut, and how k-NN counts."""

    source: str
    regions_per_photo: int  # of each side
    region_scale: tuple[float, float]
    jitter: float
    tokens: tuple[str, ...]
    neighbours: tuple[int, ...]
    temperature: float
    size: int  # pixels of a region; 0: each network's own
    batch_size: int
    reading: ImageReading
    baselines: bool
    seed: int


def run(networks: Sequence[Network], workdir: Path, settings: Settings) -> None:
    """Print the table and write workdir/eval/retrieval.json."""
    source, batch_size, neighbours = settings.source, settings.batch_size, settings.neighbours
    if not source:
        raise EvalError("source: found nothing, expected folder:DIR with photographs (labels are ignored)")
    photographs = open_source(source)
    regions = Regions(settings.regions_per_photo, settings.region_scale, settings.jitter, settings.seed)
    images = len(photographs) * regions.per_photo

    def cut(queries: bool) -> Callable[[int, int], Iterator[EvalBatch]]:
        return lambda side, _: region_batches(
            photographs, queries=queries, size=side, regions=regions, batch_size=batch_size, reading=settings.reading
        )

    sets = [ImageSet(name, cut(name == "query"), -(-images // batch_size)) for name in ("gallery", "query")]
    counting = comparison.Settings(settings.size, 0, neighbours, settings.temperature, len(photographs))
    rows = comparison.compare(
        networks, *sets, tokens=settings.tokens, with_baselines=settings.baselines, seed=settings.seed, settings=counting
    )
    details = {
        "protocol": "retrieval",
        "source": source,
        "photographs": len(photographs),
        "regions": regions._asdict(),
        "temperature": settings.temperature,
        "size": settings.size,
    }
    title = f"Which of {len(photographs)} photographs is this patch from? {images} query, {images} gallery regions"
    path = workdir / "eval" / "retrieval.json"
    comparison.publish(rows, title=title, path=path, details=details, gallery_images=images, neighbours=neighbours)
