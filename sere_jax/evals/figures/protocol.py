"""The figures protocol: run the networks on a few images and draw every figure that was asked for into workdir/figures."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure

from sere_jax.data.batches.whole_images import resize_and_centre_crop
from sere_jax.data.crops.views import ViewRecipe
from sere_jax.data.images.reading import ImageReading
from sere_jax.data.sources.example import Source
from sere_jax.data.sources.open import open_source
from sere_jax.evals.features import normalise
from sere_jax.evals.figures import attention, canvas, channels, crops, pca, relations
from sere_jax.evals.figures.first_batch import Feed, FirstBatch, first_batch
from sere_jax.evals.frozen.analysis import Tokens
from sere_jax.evals.frozen.views import pairs, read_image, see
from sere_jax.evals.network import EvalError, Network, untrained
from sere_jax.ops.geometry import Sampling
from sere_jax.ops.photometric import PhotometryParams
from sere_jax.reporting import table
from sere_jax.types import Features

FIGURES = ("crops", "attention", "relations", "pca", "channels")
_NEED_NO_NETWORK = ("crops",)
_USUAL_PATCH = 16
_SHOWN_SIDE = 256  # pixels a side of the photographs beside the maps


class Settings(NamedTuple):
    """What the figures show; every figure takes the fields it needs."""

    source: str
    which: tuple[str, ...]  # of FIGURES
    images: tuple[int, ...]  # positions in the source
    size: int  # side of the whole images shown to the networks, pixels; 0: each figure's habit, see `_side`
    views: ViewRecipe  # of the pairs
    photometry: Sequence[PhotometryParams]  # of the first view of a pair and of the second
    points: int  # a side of the overlap; of the crops the feed's
    sampling: Sampling
    tokens: Tokens
    temperature: float  # of the spatial relation shown
    queries: tuple[float, ...]  # down, right, down, right ...: places in the overlap as fractions of its height and width
    mass: float  # of attention kept in a head's panel; 0: all
    channel_count: int
    random: bool  # also the first network at random initialisation
    seed: int
    reading: ImageReading
    feed: Callable[[], Feed]  # of the crops: opens its source

    @property
    def places(self) -> list[tuple[float, float]]:
        """The queries in pairs (down, right)."""
        return list(zip(self.queries[::2], self.queries[1::2], strict=True))


def run(networks: Sequence[Network], workdir: Path, settings: Settings) -> None:
    """Draw and save; without a network only what needs none, and it says so."""
    if jax.process_index() != 0:
        return  # one process is enough for a handful of images
    _check(settings)
    opened = open_source(settings.source)
    _check_positions(settings.images, len(opened), settings.source)
    wanted = [name for name in settings.which if networks or name in _NEED_NO_NETWORK]
    if len(wanted) < len(settings.which):
        table.console().print(
            f"without a checkpoint only {', '.join(wanted) or 'nothing'} can be drawn; give --checkpoint=DIR for the rest"
        )
    shown = [*networks, *([untrained(networks[0], settings.seed)] if settings.random and networks else [])]
    studio = Studio(opened, shown, settings)
    for name in wanted:
        for file, figure in _MAKERS[name](studio):
            path = canvas.save(figure, workdir / "figures" / f"{file}.png")
            table.console().print(f"written: {path}", highlight=False)


def _check(settings: Settings) -> None:
    unknown = [name for name in settings.which if name not in FIGURES]
    if unknown:
        raise EvalError(f"which: found {', '.join(unknown)}; expected some of {', '.join(FIGURES)}")
    if len(settings.queries) % 2 or not settings.queries:
        raise EvalError(f"queries: found {len(settings.queries)} numbers; expected pairs (down, right) of fractions of the overlap")


def _check_positions(images: tuple[int, ...], count: int, source: str) -> None:
    wrong = [i for i in images if not 0 <= i < count]
    if not images or wrong:
        raise EvalError(f"images: found {wrong or 'none'}; expected positions from 0 to {count - 1} in {source!r}")


def _side(network: Network, settings: Settings, factor: int) -> int:
    """The side to show images at: `size`, or `factor` x what the network was trained on; a multiple of its patch."""
    side = settings.size or factor * network.size
    return max(network.patch, side // network.patch * network.patch)


@dataclasses.dataclass
class Studio:
    """What the figures are drawn from. Features of the whole images are made once, for all figures that want them."""

    source: Source
    networks: Sequence[Network]
    settings: Settings

    @property
    def names(self) -> list[str]:
        """Of the networks, as rows are labelled."""
        return [network.name for network in self.networks]

    def squares(self, side: int) -> UInt8[np.ndarray, "b S S 3"]:
        """The centre squares of the chosen images."""
        shown = [read_image(self.source, i, self.settings.reading) for i in self.settings.images]
        return np.stack([resize_and_centre_crop(image, side, side) for image in shown])

    @functools.cached_property
    def features(self) -> list[Features]:
        """Of every network, with attention, at twice the size it was trained on unless told otherwise.

        A finer grid of patches shows outlines (the papers' tool takes 480 pixels for 224).
        """
        found = []
        for network in self.networks:
            images = normalise(self.squares(_side(network, self.settings, 2)), network.mean, network.std)
            found.append(jax.device_get(jax.jit(functools.partial(network.apply, attention=True))(network.params, images)))
        return found

    @property
    def patches(self) -> list[Float[np.ndarray, "b h w d"]]:
        """The patch tokens that the settings ask for."""
        kept = [f.patches if self.settings.tokens == "post" else f.patches_prenorm for f in self.features]
        return [np.asarray(tokens, np.float32) for tokens in kept]


def _attention(studio: Studio) -> Iterator[tuple[str, Figure]]:
    maps = []
    for name, features in zip(studio.names, studio.features, strict=True):
        if features.attention is None:
            raise EvalError(f"{name}: gives no attention; expected a vision transformer")
        h, w = features.patches.shape[1:3]
        maps.append(attention.cls_attention(np.asarray(features.attention), (h, w)))
    images = studio.squares(max(_SHOWN_SIDE, _side(studio.networks[0], studio.settings, 2)))
    yield "attention", attention.draw(images, maps, studio.names, mass=studio.settings.mass)


def _pca(studio: Studio) -> Iterator[tuple[str, Figure]]:
    yield "pca", pca.draw(studio.squares(_SHOWN_SIDE), studio.patches, studio.names)


def _channels(studio: Studio) -> Iterator[tuple[str, Figure]]:
    count = studio.settings.channel_count
    yield "channels", channels.draw(studio.squares(_SHOWN_SIDE), studio.patches, studio.names, count=count)


def _relations(studio: Studio) -> Iterator[tuple[str, Figure]]:
    source, networks, settings = studio.source, studio.networks, studio.settings
    seen = []
    for network in networks:
        recipe = dataclasses.replace(settings.views, local_count=0, global_size=_side(network, settings, 1))
        [pair] = pairs(source, settings.images, recipe, seed=settings.seed, batch_size=len(settings.images), reading=settings.reading)
        look = see(network, pair, settings.photometry[:2], seed=settings.seed, size=settings.points, sampling=settings.sampling)
        seen.append((pair, look))
    pair, look = seen[0]
    pixels = np.asarray(look.views) * np.asarray(networks[0].std) + np.asarray(networks[0].mean)
    cases: list[relations.Case] = []
    rows: list[list[relations.Rows]] = [[] for _ in networks]
    for i in np.flatnonzero(np.asarray(look.points[0].valid)):
        image = read_image(source, int(pair.positions[i]), settings.reading)
        for at in settings.places:
            case = relations.Case(image, pixels[i], pair.boxes[i], pair.flips[i], relations.query_at(pair.boxes[i], at))
            cases.append(case)
            for found, (_, one) in zip(rows, seen, strict=True):
                alone = jax.tree.map(lambda x, i=i: x[i : i + 1], one)
                found.append(relations.relation_rows(alone, case, tokens=settings.tokens, temperature=settings.temperature))
    if not cases:
        raise EvalError("views.global_scale: no two views overlap; expected larger crops or other images")
    yield "relations", relations.draw(cases, rows, [n.name for n in networks], temperature=settings.temperature)


def _crops(studio: Studio) -> Iterator[tuple[str, Figure]]:
    settings = studio.settings
    feed, patch = settings.feed(), studio.networks[0].patch if studio.networks else _USUAL_PATCH
    batch = first_batch(feed, len(settings.images))
    yield "crops", crops.draw(batch, _origin(feed, batch), patch=patch, points=feed.points, sampling=feed.sampling)


def _origin(feed: Feed, batch: FirstBatch) -> str:
    """Which batch it is, and why no patch is hidden where the method hides some."""
    text = f"First images of step 0 from {feed.source.spec}, seed {feed.seed}."
    if feed.masking is not None and batch.views.masks is not None and not np.any(batch.views.masks):
        text += f" No patch is hidden: masks begin at step {feed.masking.start_step}, and some images have none."
    return text


_MAKERS: dict[str, Callable[[Studio], Iterator[tuple[str, Figure]]]] = {
    "crops": _crops,
    "attention": _attention,
    "relations": _relations,
    "pca": _pca,
    "channels": _channels,
}
