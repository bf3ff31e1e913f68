"""The retrieval protocol: k-NN on photographs without labels, where every photograph is a class of its own.

Gallery regions come from the left half of a photograph and query regions from the right half, so that they share no
pixel. The colours of the queries may be jittered, so that colour alone does not identify the photograph.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from sere_jax.buckets import Location
from sere_jax.config.keys import RULES
from sere_jax.config.rule import Rule
from sere_jax.data.batches.whole_images import EvalBatch
from sere_jax.data.images.reading import DEFAULT_READING, ImageReading
from sere_jax.data.sources.example import Source
from sere_jax.data.sources.open import open_source
from sere_jax.evals.frozen import comparison
from sere_jax.evals.frozen.comparison import ImageSet
from sere_jax.evals.network import EvalError, Network, shared_reading
from sere_jax.evals.pictures import LeftOut, left_out_note, read_pictures
from sere_jax.evals.protocol import Protocol
from sere_jax.reporting import table


class Regions(NamedTuple):
    """How regions are cut. All random numbers are functions of (seed, photograph, side, region)."""

    per_photo: int = 8  # of each side
    scale: tuple[float, float] = (0.1, 0.4)  # area of a region as a fraction of its half of the photograph
    jitter: float = 0.4  # of the queries' brightness, contrast and saturation: factors in [1 - jitter, 1 + jitter]
    seed: int = 0


def region_box(height: int, width: int, right: bool, scale: tuple[float, float], rng: np.random.Generator) -> tuple[int, int, int, int]:
    """A square of random area and place inside the left or the right half: (left, top, right, bottom) in pixels.

    The halves are floor(width / 2) wide and share no column. The square's area is `scale` x the half's area, limited to the
    largest square that fits.
    """
    half = width // 2
    side = int(math.sqrt(rng.uniform(*scale) * half * height))
    side = max(1, min(side, half, height))
    x = int(rng.integers(half - side + 1)) + (width - half if right else 0)
    y = int(rng.integers(height - side + 1))
    return x, y, x + side, y + side


def jitter(image: UInt8[np.ndarray, "H W c"], strength: float, rng: np.random.Generator) -> UInt8[np.ndarray, "H W c"]:
    """Scale saturation, contrast and brightness, in this order, by factors uniform in [1 - strength, 1 + strength].

    Grey is the luma of three channels, and the mean of any other number.
    """
    saturation, contrast, brightness = rng.uniform(1 - strength, 1 + strength, 3)
    pixels = image.astype(np.float32)
    grey = _grey(pixels)
    pixels = grey[..., None] + saturation * (pixels - grey[..., None])
    level = _grey(pixels).mean()
    pixels = brightness * (level + contrast * (pixels - level))
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def _grey(pixels: Float[np.ndarray, "H W c"]) -> Float[np.ndarray, "H W"]:
    if pixels.shape[-1] != 3:
        return pixels.mean(axis=-1)
    return pixels @ np.asarray([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


def region_batches(
    source: Source,
    *,
    queries: bool,
    size: int,
    regions: Regions,
    batch_size: int,
    left_out: LeftOut,
    reading: ImageReading = DEFAULT_READING,
) -> Iterator[EvalBatch]:
    """Regions of every photograph as `EvalBatch`es of one size; label = the photograph's position in the source.

    Region n of photograph p has the index p x per_photo + n. Photographs that cannot be read, or are too narrow for two halves,
    are added to `left_out` and have no rows. The last batch is padded with rows of index -1.

    Raises EvalError for fewer than two photographs.
    """
    if len(source) < 2:
        raise EvalError(f"source: found {len(source)} photographs; expected at least 2")
    cuts = _regions(source, queries, size, regions, left_out, reading)
    while rows := list(itertools.islice(cuts, batch_size)):
        images = np.zeros((batch_size, size, size, reading.channels), np.uint8)
        labels, index = np.full(batch_size, -1, np.int32), np.full(batch_size, -1, np.int32)
        for slot, (photo, number, pixels) in enumerate(rows):
            images[slot], labels[slot], index[slot] = pixels, photo, photo * regions.per_photo + number
        yield EvalBatch(images, labels, index, index >= 0)


def _regions(
    source: Source, queries: bool, size: int, regions: Regions, left_out: LeftOut, reading: ImageReading
) -> Iterator[tuple[int, int, np.ndarray]]:
    """(photograph, number, pixels) of every region."""
    for picture in read_pictures(source, range(len(source)), left_out, reading):
        height, width = picture.pixels.shape[:2]
        if width < 2:
            left_out.add(source, picture.position, picture.name, f"its {width} x {height} pixels have no left and right half", True)
            continue
        for number in range(regions.per_photo):
            rng = np.random.default_rng([regions.seed, picture.position, int(queries), number])
            box = region_box(height, width, queries, regions.scale, rng)
            cut = _resized(picture.pixels, box, size)
            yield picture.position, number, jitter(cut, regions.jitter, rng) if queries and regions.jitter else cut


def _resized(pixels: UInt8[np.ndarray, "H W c"], box: tuple[int, int, int, int], size: int) -> UInt8[np.ndarray, "S S c"]:
    """The box, resized by Pillow's bicubic filter; each channel by itself where there are not three."""
    planes = [pixels] if pixels.shape[-1] == 3 else list(np.moveaxis(pixels, -1, 0))
    resized = [
        np.asarray(Image.fromarray(np.ascontiguousarray(plane)).resize((size, size), Image.Resampling.BICUBIC, box=box)) for plane in planes
    ]
    return resized[0] if pixels.shape[-1] == 3 else np.stack(resized, axis=-1)


def _notes(left_out: LeftOut, total: int) -> list[str]:
    notes = (
        left_out_note("photographs", left_out.unreadable(), total),
        left_out_note("photographs", left_out.small(), total, why="cannot be halved, at a width of 1 pixel,"),
    )
    return [note for note in notes if note]


class Settings(NamedTuple):
    """The photographs, how they are cut, and the settings of the k-NN."""

    source: str
    regions_per_photo: int  # of each side
    region_scale: tuple[float, float]
    jitter: float
    tokens: tuple[str, ...]
    neighbours: tuple[int, ...]
    temperature: float
    size: int  # pixels of a region; 0: each network's own
    batch_size: int
    reading: ImageReading  # its channels and range are the networks'
    baselines: bool
    seed: int


def run(networks: Sequence[Network], workdir: Location, settings: Settings) -> None:
    """Print the table and write workdir/eval/retrieval.json."""
    source, batch_size = settings.source, settings.batch_size
    if not source:
        raise EvalError("source: found nothing, expected folder:DIR with photographs (labels are ignored)")
    reading, left_out = shared_reading(networks, settings.reading), LeftOut()
    table.say(f"retrieval: opening {source}")
    photographs = open_source(source)
    regions = Regions(settings.regions_per_photo, settings.region_scale, settings.jitter, settings.seed)

    def cut(queries: bool) -> Callable[[int, int], Iterator[EvalBatch]]:
        return lambda side, _: region_batches(
            photographs, queries=queries, size=side, regions=regions, batch_size=batch_size, left_out=left_out, reading=reading
        )

    images = len(photographs) * regions.per_photo
    counting = comparison.Settings(settings.size, 0, settings.neighbours, settings.temperature, len(photographs))
    rows = comparison.compare(
        networks,
        *(ImageSet(name, cut(name == "query"), images, batch_size) for name in ("gallery", "query")),
        tokens=settings.tokens,
        with_baselines=settings.baselines,
        seed=settings.seed,
        settings=counting,
    )
    read, count = rows[0].read, len(photographs) - len(left_out)
    details = {
        "protocol": "retrieval",
        "source": source,
        "photographs": count,
        "unreadable": left_out.unreadable(),
        "too_small": left_out.small(),
        "gallery_images": read.gallery,
        "query_images": read.query,
        "regions": regions._asdict(),
        "temperature": settings.temperature,
        "size": settings.size,
    }
    comparison.publish(
        rows,
        title=f"Which of {count:,} photographs is this patch from? {read.query:,} query, {read.gallery:,} gallery regions",
        path=workdir / "eval" / "retrieval.json",
        details=details,
        neighbours=settings.neighbours,
        notes=_notes(left_out, len(photographs)),
    )


_RULES: Mapping[str, Rule] = {
    **comparison.RULES,
    "source": Rule(str),
    "regions_per_photo": Rule(int, low=1),
    "region_scale": RULES["views.global_scale"],
    "jitter": Rule(float, low=0.0, high=1.0),
}
PROTOCOL = Protocol("retrieval", _RULES, Settings, run, columns=comparison.columns)
