"""The protocol of Fig. 6: changes of the self-relations of each network under augmentation. See `analysis`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from sere_jax.buckets import Location
from sere_jax.config.rule import Rule
from sere_jax.data.crops.views import ViewRecipe
from sere_jax.data.images.reading import ImageReading
from sere_jax.data.sources.example import Source
from sere_jax.data.sources.open import open_source
from sere_jax.evals.frozen.analysis import TOKENS, Differences, Standard, Tokens, Variant, compare_views, moments, standard
from sere_jax.evals.frozen.views import VIEW_RULES, Pairs, SeenPairs, batch_count, compiled_look, pairs, view_keys, view_side
from sere_jax.evals.network import EvalError, Network, shared_reading, size_mistake, untrained
from sere_jax.evals.pictures import LeftOut, left_out_note
from sere_jax.evals.protocol import Protocol
from sere_jax.ops.geometry import Sampling
from sere_jax.ops.photometric import PhotometryParams
from sere_jax.reporting import table
from sere_jax.reporting.progress import track

KINDS = ("spatial", "channel")


class Summary(NamedTuple):
    """The differences of one network's relations of one kind, averaged over images."""

    same: float
    different: float
    ratio: float  # same / different: the number to compare networks by
    ratio_error: float  # its standard error over images
    uniform: float
    images: int


def summarise(differences: Differences) -> Summary:
    """Means over the valid images. The ratio's error, by linearisation, is std(same - ratio x different) / (mean sqrt n).

    Raises EvalError where no pair of views overlaps.
    """
    valid, pair = np.asarray(differences.valid), np.asarray(differences.valid_pair)
    if not valid.any() or not pair.any():
        raise EvalError("views.global_scale: the two views of hardly any image overlap; expected larger crops or more images")
    same, different, uniform = (np.asarray(x, np.float64) for x in (differences.same, differences.different, differences.uniform))
    scale = max(float(different[pair].mean()), 1e-12)
    ratio = float(same[valid].mean()) / scale
    residual = (same - ratio * different)[valid & pair]
    error = float(residual.std() / scale / np.sqrt(max(len(residual), 1)))
    return Summary(float(same[valid].mean()), scale, ratio, error, float(uniform[valid].mean()), int(valid.sum()))


class Settings(NamedTuple):
    """The images, views and variants of the comparison. Every network sees the same pixels."""

    source: str
    images: int  # how many of the first; 0: all
    views: ViewRecipe
    photometry: Sequence[PhotometryParams]  # of the first view and of the second
    tokens: Sequence[Tokens]
    spatial_temperatures: Sequence[float]  # variants: the k-th of each ...
    channel_temperatures: Sequence[float]  # ... together
    heads: int
    points: int  # on a side of the overlap
    sampling: Sampling
    size: int  # pixels of a view; 0: what each network was trained on
    batch_size: int
    reading: ImageReading  # its channels and range are the networks'
    random: bool  # also the first network at random initialisation
    seed: int

    @property
    def variants(self) -> list[Variant]:
        """Every kind of token at every pair of temperatures. Raises EvalError if the temperatures do not pair up."""
        spatial, channel = self.spatial_temperatures, self.channel_temperatures
        if len(spatial) != len(channel):
            raise EvalError(f"channel_temperatures: found {len(channel)}, expected {len(spatial)}, one for each of spatial_temperatures")
        return [Variant(kind, s, c, self.heads) for kind in self.tokens for s, c in zip(spatial, channel, strict=True)]


def _check(networks: Sequence[Network], settings: Settings) -> None:
    """Raises EvalError if a network's patches do not cover the views, or `heads` does not divide its width."""
    for network in networks:
        side = view_side(network, settings.size)
        if mistake := size_mistake(side, network.patch):
            raise EvalError(f"size of {network.name}: {mistake}")
        images = jax.ShapeDtypeStruct((1, side, side, network.channels), np.float32)
        width, heads = jax.eval_shape(network.apply, network.params, images).patches.shape[-1], settings.heads
        if width % heads:
            nearest = min((n for n in range(1, width + 1) if width % n == 0), key=lambda n: abs(n - heads))
            raise EvalError(f"heads: found {heads}, expected a divisor of {network.name}'s width {width}; nearest: {nearest}")


class Measured(NamedTuple):
    """The relations of one network, and the images behind them."""

    variants: dict[str, dict[str, Summary]]  # label of the variant -> spatial | channel -> summary
    images: int  # that could be read
    left_out: LeftOut


def measure(network: Network, source: Source, settings: Settings) -> Measured:
    """Measure all variants in one pass over the images, after one for the statistics of standardised tokens where these are wanted.

    Raises EvalError where heads or size do not suit the network, or fewer than two images can be read.
    """
    _check([network], settings)
    look = compiled_look(network, settings.photometry[:2], settings.points, settings.sampling)
    variants = settings.variants

    @jax.jit
    def compare(over: Any, params: Any, views: Any, boxes: Any, flips: Any, keys: Any) -> dict[str, dict[str, Differences]]:
        seen = look(params, views, boxes, flips, keys)
        return {variant.label: compare_views(seen.first, seen.second, *seen.points, variant, over) for variant in variants}

    left_out = LeftOut()
    over = _standard(network, source, settings, look) if "standardised" in settings.tokens else None
    parts, images = [], 0
    for pair, keys in _pairs(network, source, settings, left_out, "two views each"):
        images += len(pair.positions)
        if images < 2:
            break
        parts.append(jax.device_get(compare(over, network.params, pair.views, pair.boxes, pair.flips, keys)))
    if images < 2:
        tried = len(source) if not settings.images else min(len(source), settings.images)
        raise EvalError(f"images: {images} of {tried} in {source.spec!r} can be read; expected at least 2")
    joined = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
    summaries = {label: {kind: summarise(kinds[kind]) for kind in KINDS} for label, kinds in joined.items()}
    return Measured(summaries, images, left_out)


def _pairs(network: Network, source: Source, settings: Settings, left_out: LeftOut, what: str) -> Iterator[tuple[Pairs, jax.Array]]:
    """Two views of each image in batches, with the keys of their colours."""
    size = settings.batch_size
    positions = range(min(len(source), settings.images or len(source)))
    if len(positions) < 2 or size < 2:
        raise EvalError(f"images: found {len(positions)} in batches of {size}; expected at least 2, an image is compared with the next")
    recipe = dataclasses.replace(settings.views, local_count=0, global_size=view_side(network, settings.size))
    reading = shared_reading([network], settings.reading)
    batches = pairs(source, positions, recipe, seed=settings.seed, batch_size=size, left_out=left_out, reading=reading)
    label = f"{network.name}: {what} of {len(positions):,} images in batches of {size}"
    for pair in track(batches, label, batch_count(len(positions), size)):
        yield pair, view_keys(settings.seed, pair.positions)


def _standard(network: Network, source: Source, settings: Settings, look: Callable[..., SeenPairs]) -> Standard:
    """Mean and deviation of each channel over the tokens of both views of all images; sums of batches are added in float64."""

    @jax.jit
    def sums(params: Any, views: Any, boxes: Any, flips: Any, keys: Any) -> Any:
        seen = look(params, views, boxes, flips, keys)
        return jax.tree.map(lambda *x: sum(x), *(moments(features) for features in (seen.first, seen.second)))

    total, squares, count = np.float64(0), np.float64(0), 0
    for pair, keys in _pairs(network, source, settings, LeftOut(), "statistics of two views each"):
        one, squared = jax.device_get(sums(network.params, pair.views, pair.boxes, pair.flips, keys))
        total, squares = total + one.astype(np.float64), squares + squared.astype(np.float64)
        count += 2 * len(pair.positions) * (view_side(network, settings.size) // network.patch) ** 2
    return standard(np.asarray(total), np.asarray(squares), max(count, 1))


def run(networks: Sequence[Network], workdir: Location, settings: Settings) -> None:
    """Print a table for each variant and write workdir/eval/relations.json. Process 0 does all the work."""
    if jax.process_index() != 0:
        return
    variants = settings.variants
    _check(networks, settings)  # all networks, before the first is measured
    shared_reading(networks, settings.reading)
    table.say(f"relations: opening {settings.source}")
    source = open_source(settings.source)
    compared = [*networks, *([untrained(networks[0], settings.seed)] if settings.random else [])]
    results = {network.name: measure(network, source, settings) for network in compared}
    first = next(iter(results.values()))
    notes = [_RATIO, *_notes(first, settings.source)]
    _show(variants, results, notes)
    details = {
        "protocol": "relations",
        "source": settings.source,
        "images": first.images,
        "unreadable": list(first.left_out.values()),
        "views": dataclasses.asdict(settings.views),
        "points": settings.points,
        "seed": settings.seed,
    }
    table.write(workdir / "eval" / "relations.json", {**details, "results": _listed(results, compared), "notes": notes})


_RULES: Mapping[str, Rule] = {
    **VIEW_RULES,
    "images": Rule(int, low=0),
    "tokens": Rule(str, choices=TOKENS, length=0),
    "spatial_temperatures": Rule(float, low=0.0, above=True, length=0),
    "channel_temperatures": Rule(float, low=0.0, above=True, length=0),
    "heads": Rule(int, low=1),
    "batch_size": Rule(int, low=2),
}


def columns(report: Mapping[str, Any]) -> dict[str, float]:
    """The ratio of each kind of relation in each variant (1: two views of an image differ as much as two images)."""
    variants = [(label, kinds) for result in report["results"] for label, kinds in result["variants"].items()]
    several = len(variants) > 1
    return {f"{kind} relation ratio{f' ({label})' if several else ''}": kinds[kind]["ratio"] for label, kinds in variants for kind in kinds}


PROTOCOL = Protocol("relations", _RULES, Settings, run, columns=columns)


def _notes(measured: Measured, source: str) -> Iterator[str]:
    """Notes about the images behind the numbers."""
    yield f"{measured.images:,} images of {source}"
    if note := left_out_note("images", list(measured.left_out.values()), measured.images + len(measured.left_out)):
        yield note
    spatial = next(iter(measured.variants.values()))["spatial"].images
    if apart := measured.images - spatial:
        yield f"the two views of {apart:,} images do not overlap: these count for the channels only"


_RATIO = (
    "ratio = L1 between two views of an image (same) / between views of different images (different); uniform = L1 to the uniform relation"
)


def _show(variants: Sequence[Variant], results: dict[str, Measured], notes: Sequence[str]) -> None:
    """All variants in one table, so that none is singled out, each beside its sharpness."""
    rows = []
    for variant in variants:
        for name, measured in results.items():
            cells = [f"{variant.label}: {name}"]
            for kind in KINDS:
                of_kind = measured.variants[variant.label][kind]
                cells += [
                    f"{of_kind.ratio:.3f} ±{of_kind.ratio_error:.3f}",
                    *(f"{value:.3f}" for value in (of_kind.same, of_kind.different, of_kind.uniform)),
                ]
            rows.append(cells)
    columns = ["", *(f"{kind}\n{name}" for kind in KINDS for name in ("ratio", "same", "different", "uniform"))]
    table.show("Self-relation differences", columns, rows, notes)


def _listed(results: dict[str, Measured], networks: Sequence[Network]) -> list[dict[str, Any]]:
    def plain(kinds: dict[str, Summary]) -> dict[str, Any]:
        return {kind: summary._asdict() for kind, summary in kinds.items()}

    return [
        {"name": n.name, **n.about, "variants": {label: plain(kinds) for label, kinds in results[n.name].variants.items()}}
        for n in networks
    ]
