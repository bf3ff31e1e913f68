"""The figures protocol: run the networks on a few images and draw the figures into workdir/figures."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure

from sere_jax.buckets import Location
from sere_jax.config.keys import RULES
from sere_jax.config.rule import Rule
from sere_jax.data.batches.whole_images import resize_and_centre_crop
from sere_jax.data.crops.views import ViewRecipe
from sere_jax.data.images.reading import ImageReading
from sere_jax.data.sources.example import Source
from sere_jax.data.sources.open import open_source
from sere_jax.evals.features import normalise
from sere_jax.evals.figures import attention, canvas, channels, crops, pca, relations
from sere_jax.evals.figures.first_batch import Feed, FirstBatch, first_batch
from sere_jax.evals.frozen.analysis import Tokens
from sere_jax.evals.frozen.views import VIEW_RULES, Pairs, SeenPairs, pairs, see, view_side
from sere_jax.evals.network import EvalError, Network, shared_reading, size_mistake, untrained
from sere_jax.evals.pictures import LeftOut, Picture, left_out_note, read_pictures
from sere_jax.evals.protocol import Protocol
from sere_jax.ops.geometry import Sampling
from sere_jax.ops.photometric import PhotometryParams
from sere_jax.reporting import table
from sere_jax.reporting.progress import track
from sere_jax.types import Features, PyTree

FIGURES = ("crops", "attention", "relations", "pca", "channels")
WHOLE_SIDE = 480  # pixels a side of whole images by default, as in the papers' figures of attention
_MOST_PATCHES = 60  # on a side by default: attention needs memory by their fourth power
_NEED_NO_NETWORK = ("crops",)
_USUAL_PATCH = 16
_SHOWN_SIDE = 256  # pixels a side of the photographs beside the maps


class Settings(NamedTuple):
    """Settings of all figures. Each figure uses the fields it needs."""

    source: str
    which: tuple[str, ...]  # of FIGURES
    images: tuple[int, ...]  # positions in the source
    size: int  # side of the images shown to the networks, pixels; 0: WHOLE_SIDE for whole images, views as trained
    views: ViewRecipe  # of the pairs
    photometry: Sequence[PhotometryParams]  # of the first view of a pair and of the second
    points: int  # on a side of the overlap; the crops show those of their feed
    sampling: Sampling
    tokens: Tokens
    temperature: float  # of the spatial relation shown
    queries: tuple[float, ...]  # down, right, down, right ...: places in the overlap as fractions of its height and width
    mass: float  # share of a head's attention that its panel keeps; 0: all
    channel_count: int
    random: bool  # also the first network at random initialisation
    seed: int
    reading: ImageReading  # its channels and range are the networks'
    feed: Callable[[], Feed]  # of the crops: opens its source

    @property
    def places(self) -> list[tuple[float, float]]:
        """The queries in pairs (down, right)."""
        return list(zip(self.queries[::2], self.queries[1::2], strict=True))


def run(networks: Sequence[Network], workdir: Location, settings: Settings) -> None:
    """Draw and save the figures. Without a network only the crops are drawn, and a line says so.

    Raises EvalError for settings that do not fit, and if no image can be read.
    """
    if jax.process_index() != 0:
        return  # one process is enough for a handful of images
    _check(networks, settings)
    table.say(f"figures: opening {settings.source}")
    opened = open_source(settings.source)
    _check_positions(settings.images, len(opened), settings.source)
    wanted = [name for name in settings.which if networks or name in _NEED_NO_NETWORK]
    if len(wanted) < len(settings.which):
        table.say(f"without a checkpoint only {', '.join(wanted) or 'nothing'} can be drawn; give --checkpoint=DIR for the rest")
    networks = [*networks, *([untrained(networks[0], settings.seed)] if settings.random and networks else [])]
    studio = Studio(opened, networks, settings)
    for name in wanted:
        table.say(f"figures: {name}")
        for file, figure in _MAKERS[name](studio):
            table.say(f"written: {canvas.save(figure, workdir / 'figures' / f'{file}.png')}")


_RULES: Mapping[str, Rule] = {
    **VIEW_RULES,
    "which": Rule(str, choices=FIGURES, length=0),
    "images": Rule(int, low=0, length=0),
    "tokens": RULES["relation.tokens"],
    "temperature": Rule(float, low=0.0, above=True),
    "queries": Rule(float, low=0.0, high=1.0, length=0),
    "mass": Rule(float, low=0.0, high=1.0),
    "channel_count": Rule(int, low=1, high=26),
}
PROTOCOL = Protocol("figures", _RULES, Settings, run)


def _check(networks: Sequence[Network], settings: Settings) -> None:
    unknown = [name for name in settings.which if name not in FIGURES]
    if unknown:
        raise EvalError(f"which: found {', '.join(unknown)}; expected some of {', '.join(FIGURES)}")
    if len(settings.queries) % 2 or not settings.queries:
        raise EvalError(f"queries: found {len(settings.queries)} numbers; expected pairs (down, right) of fractions of the overlap")
    for network in networks:
        if settings.size and (mistake := size_mistake(settings.size, network.patch)):
            raise EvalError(f"size of {network.name}: {mistake}")


def _check_positions(images: tuple[int, ...], count: int, source: str) -> None:
    wrong = [i for i in images if not 0 <= i < count]
    if not images or wrong:
        raise EvalError(f"images: found {wrong or 'none'}; expected positions from 0 to {count - 1} in {source!r}")


def whole_side(network: Network, size: int) -> int:
    """The side of whole images in pixels: `size`, or WHOLE_SIDE cut to a multiple of the patch and at most 60 patches."""
    return size or max(1, min(WHOLE_SIDE // network.patch, _MOST_PATCHES)) * network.patch


class Maps(NamedTuple):
    """Features and attention of a network for the whole images."""

    patches: Float[Any, "b h w d"]
    attention: Float[Any, "b m h w"] | None  # of the cls token in the last block; None: no vision transformer


@dataclasses.dataclass
class Studio:
    """Inputs of the figures. Features of whole images are computed once and shared by the figures."""

    source: Source
    networks: Sequence[Network]
    settings: Settings

    @functools.cached_property
    def reading(self) -> ImageReading:
        """How images are read, for all networks."""
        return shared_reading(self.networks, self.settings.reading)

    @functools.cached_property
    def pictures(self) -> list[Picture]:
        """The selected images that can be read. Raises EvalError if there are none."""
        left_out = LeftOut()
        pictures = list(read_pictures(self.source, self.settings.images, left_out, self.reading))
        if note := left_out_note("images", list(left_out.values()), len(self.settings.images)):
            table.say(note)
        if not pictures:
            raise EvalError(f"images: none of {self.settings.images} in {self.settings.source!r} can be read; expected at least one")
        return pictures

    def squares(self, side: int) -> UInt8[np.ndarray, "b S S c"]:
        """The centre squares of the images."""
        return np.stack([resize_and_centre_crop(picture.pixels, side, side) for picture in self.pictures])

    @functools.cached_property
    def maps(self) -> list[Maps]:
        """The maps of every network. Images are processed one by one, because attention on fine grids needs much memory."""
        tokens, maps = self.settings.tokens, []
        for network in self.networks:
            side = whole_side(network, self.settings.size)
            look = _whole_images(network, tokens)
            label = f"{network.name}: images of {side} x {side} pixels"
            images = track(self.squares(side), label, len(self.pictures))
            parts = [jax.device_get(look(network.params, image[None])) for image in images]
            maps.append(jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts))
        return maps

    def caption(self, sizes: str, networks: Sequence[Network] | None = None) -> canvas.Caption:
        """The caption of a figure: networks, source and `sizes` of the images."""
        networks = self.networks if networks is None else networks
        lines = (*(network.description for network in networks), f"Images of {self.settings.source}, {sizes}.")
        names = tuple(Path(picture.name).name for picture in self.pictures)
        return canvas.Caption(lines, tuple((network.name, network.origin) for network in networks), names)

    def whole_sizes(self) -> str:
        """Sizes of the whole images that the networks get."""
        sides = {(whole_side(network, self.settings.size), network.patch) for network in self.networks}
        return " or ".join(f"{side} x {side} pixels in patches of {patch}" for side, patch in sorted(sides))


def _whole_images(network: Network, tokens: Tokens) -> Callable[[PyTree, np.ndarray], Maps]:
    @jax.jit
    def look(params: PyTree, images: jax.Array) -> Maps:
        features: Features = network.apply(params, normalise(images, network.mean, network.std), attention=True)
        patches = jnp.asarray(features.patches if tokens == "post" else features.patches_prenorm, jnp.float32)
        h, w = patches.shape[1:3]
        return Maps(patches, None if features.attention is None else attention.cls_attention(features.attention, (h, w)))

    return look


def _attention(studio: Studio) -> Iterator[tuple[str, Figure]]:
    with_attention = [(n, maps.attention) for n, maps in zip(studio.networks, studio.maps, strict=True) if maps.attention is not None]
    without = [n.name for n, maps in zip(studio.networks, studio.maps, strict=True) if maps.attention is None]
    if without:
        table.say(f"attention: {', '.join(without)}: left out, because only vision transformers have attention")
    if with_attention:
        networks, maps = zip(*with_attention, strict=True)
        side = max(_SHOWN_SIDE, *(whole_side(network, studio.settings.size) for network in networks))
        caption = studio.caption(studio.whole_sizes(), networks)
        yield "attention", attention.draw(studio.squares(side), maps, caption, mass=studio.settings.mass)


def _pca(studio: Studio) -> Iterator[tuple[str, Figure]]:
    patches = [maps.patches for maps in studio.maps]
    yield "pca", pca.draw(studio.squares(_SHOWN_SIDE), patches, studio.caption(studio.whole_sizes()))


def _channels(studio: Studio) -> Iterator[tuple[str, Figure]]:
    patches, caption = [maps.patches for maps in studio.maps], studio.caption(studio.whole_sizes())
    yield "channels", channels.draw(studio.squares(_SHOWN_SIDE), patches, caption, count=studio.settings.channel_count)


def _relations(studio: Studio) -> Iterator[tuple[str, Figure]]:
    networks, settings = studio.networks, studio.settings
    seen = [_look_at_pairs(studio, network) for network in networks]
    pair, look = seen[0]
    pixels = np.asarray(look.views) * np.asarray(networks[0].std) + np.asarray(networks[0].mean)
    names = {picture.position: picture for picture in studio.pictures}
    cases: list[relations.Case] = []
    rows: list[list[relations.Rows]] = [[] for _ in networks]
    for i in np.flatnonzero(np.asarray(look.points[0].valid)):
        picture = names[int(pair.positions[i])]
        for at in settings.places:
            query = relations.query_at(pair.boxes[i], at)
            case = relations.Case(Path(picture.name).name, picture.pixels, pixels[i], pair.boxes[i], pair.flips[i], query)
            cases.append(case)
            for network_rows, (_, features) in zip(rows, seen, strict=True):
                of_image = jax.tree.map(lambda x, i=i: x[i : i + 1], features)
                network_rows.append(relations.relation_rows(of_image, case, tokens=settings.tokens, temperature=settings.temperature))
    if not cases:
        raise EvalError("views.global_scale: no two views overlap; expected larger crops or other images")
    if missing := int(np.sum(~np.asarray(look.points[0].valid))):
        table.say(f"relations: the two views of {missing} of {len(studio.pictures)} images do not overlap; left out")
    sides = sorted({view_side(network, settings.size) for network in networks})
    caption = studio.caption(f"views of {' or '.join(map(str, sides))} pixels a side, seed {settings.seed}")
    yield "relations", relations.draw(cases, rows, caption, temperature=settings.temperature)


def _look_at_pairs(studio: Studio, network: Network) -> tuple[Pairs, SeenPairs]:
    """The same pair of views of each image for every network, in one batch."""
    settings, positions = studio.settings, [picture.position for picture in studio.pictures]
    recipe = dataclasses.replace(settings.views, local_count=0, global_size=view_side(network, settings.size))
    batches = pairs(
        studio.source, positions, recipe, seed=settings.seed, batch_size=len(positions), left_out=LeftOut(), reading=studio.reading
    )
    [pair] = track(batches, f"{network.name}: two views each of {len(positions)} images", 1)
    return pair, see(network, pair, settings.photometry[:2], seed=settings.seed, size=settings.points, sampling=settings.sampling)


def _crops(studio: Studio) -> Iterator[tuple[str, Figure]]:
    settings = studio.settings
    feed, patch = settings.feed(), studio.networks[0].patch if studio.networks else _USUAL_PATCH
    table.say(f"crops: reading the first batch of {feed.source.spec}")
    batch = first_batch(feed, len(settings.images))
    figure = crops.draw(
        batch, _origin(feed, batch), patch=patch, points=feed.points, local_points=feed.local_points, sampling=feed.sampling
    )
    yield "crops", figure


def _origin(feed: Feed, batch: FirstBatch) -> list[str]:
    """The origin of the batch, and a reason if a masking method hides no patch in it."""
    views = f"of the training of {feed.run}" if feed.run else "by the evaluation's own config"
    lines = [f"Crops {views}.", f"The first images of step 0 from {feed.source.spec}, seed {feed.seed}."]
    if feed.masking is not None and batch.views.masks is not None and not np.any(batch.views.masks):
        lines.append(f"No patch is hidden: masks begin at step {feed.masking.start_step}, and some images have none.")
    return lines


_MAKERS: dict[str, Callable[[Studio], Iterator[tuple[str, Figure]]]] = {
    "crops": _crops,
    "attention": _attention,
    "relations": _relations,
    "pca": _pca,
    "channels": _channels,
}
