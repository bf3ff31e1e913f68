"""The protocol of Fig. 6: how invariant are the self-relations of each network to augmentation? See `analysis`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from sere_jax.data.crops.views import ViewRecipe
from sere_jax.data.images.reading import ImageReading
from sere_jax.data.sources.open import open_source
from sere_jax.evals.frozen.analysis import Differences, Tokens, Variant, compare_views
from sere_jax.evals.frozen.views import batch_count, compiled_look, pairs, view_keys
from sere_jax.evals.network import EvalError, Network, untrained
from sere_jax.ops.geometry import Sampling
from sere_jax.ops.photometric import PhotometryParams
from sere_jax.reporting import table
from sere_jax.reporting.progress import track

KINDS = ("spatial", "channel")


class Summary(NamedTuple):
    """What one network's relations of one kind do, averaged over images."""

    same: float
    different: float
    ratio: float  # same / different: the number to compare networks by
    ratio_error: float  # its standard error over images
    uniform: float
    images: int


def summarise(found: Differences) -> Summary:
    """Means over the images that count; the error of the ratio by linearisation, std(same - ratio x different) / (mean sqrt n).

    Raises EvalError where not one pair of views overlaps.
    """
    valid, pair = np.asarray(found.valid), np.asarray(found.valid_pair)
    if not valid.any() or not pair.any():
        raise EvalError("views.global_scale: the two views of hardly any image overlap; expected larger crops or more images")
    same, different, uniform = (np.asarray(x, np.float64) for x in (found.same, found.different, found.uniform))
    scale = max(float(different[pair].mean()), 1e-12)
    ratio = float(same[valid].mean()) / scale
    residual = (same - ratio * different)[valid & pair]
    error = float(residual.std() / scale / np.sqrt(max(len(residual), 1)))
    return Summary(float(same[valid].mean()), scale, ratio, error, float(uniform[valid].mean()), int(valid.sum()))


class Settings(NamedTuple):
    """On which images, views and variants networks are compared; every network sees the same pixels."""

    source: str
    images: int  # the first so many; 0: all
    views: ViewRecipe
    photometry: Sequence[PhotometryParams]  # of the first view and of the second
    tokens: Sequence[Tokens]
    spatial_temperatures: Sequence[float]  # variants: the k-th of each ...
    channel_temperatures: Sequence[float]  # ... together
    heads: int
    points: int  # a side, on the overlap
    sampling: Sampling
    size: int  # pixels of a view; 0: what each network was trained on
    batch_size: int
    reading: ImageReading
    random: bool  # also the first network at random initialisation
    seed: int

    @property
    def variants(self) -> list[Variant]:
        """Every kind of token at every pair of temperatures. Raises EvalError where these are no pairs."""
        spatial, channel = self.spatial_temperatures, self.channel_temperatures
        if len(spatial) != len(channel):
            raise EvalError(f"channel_temperatures: found {len(channel)}, expected {len(spatial)}, one for each of spatial_temperatures")
        return [Variant(kind, s, c, self.heads) for kind in self.tokens for s, c in zip(spatial, channel, strict=True)]


def _side(network: Network, size: int) -> int:
    """The side of a view in pixels: `size`, or what the network was trained on as far as its patches reach."""
    return size or max(network.patch, network.size // network.patch * network.patch)


def _check(networks: Sequence[Network], settings: Settings) -> None:
    """Raises EvalError where a network's grid of patches would not span the views, or its width has no such groups."""
    for network in networks:
        side, patch = _side(network, settings.size), network.patch
        if side % patch:
            nearest = max(patch, round(side / patch) * patch)
            expected = f"a multiple of {network.name}'s patch of {patch} pixels, or places on the overlap would shift"
            raise EvalError(f"size: found {side}, expected 0 or {expected}; nearest: {nearest}")
        images = jax.ShapeDtypeStruct((1, side, side, len(network.mean)), np.float32)
        width, heads = jax.eval_shape(network.apply, network.params, images).patches.shape[-1], settings.heads
        if width % heads:
            nearest = min((n for n in range(1, width + 1) if width % n == 0), key=lambda n: abs(n - heads))
            raise EvalError(f"heads: found {heads}, expected a divisor of {network.name}'s width {width}; nearest: {nearest}")


def measure(network: Network, settings: Settings) -> dict[str, dict[str, Summary]]:
    """{variant label: {"spatial": Summary, "channel": Summary}}, from one pass over the images.

    Raises EvalError where heads or size do not suit the network, or there are fewer than two images.
    """
    _check([network], settings)
    look = compiled_look(network, settings.photometry[:2], settings.points, settings.sampling)
    variants = settings.variants

    @jax.jit
    def compare(params: Any, views: Any, boxes: Any, flips: Any, keys: Any) -> dict[str, dict[str, Differences]]:
        seen = look(params, views, boxes, flips, keys)
        return {variant.label: compare_views(seen.first, seen.second, *seen.points, variant) for variant in variants}

    source, size = open_source(settings.source), settings.batch_size
    positions = range(min(len(source), settings.images or len(source)))
    if len(positions) < 2 or size < 2:
        raise EvalError(f"images: found {len(positions)} in batches of {size}; expected at least 2, an image is compared with the next")
    recipe = dataclasses.replace(settings.views, local_count=0, global_size=_side(network, settings.size))
    batches = pairs(source, positions, recipe, seed=settings.seed, batch_size=size, reading=settings.reading)
    found = []
    for pair in track(batches, f"{network.name}: relations", batch_count(len(positions), size)):
        keys = view_keys(settings.seed, pair.positions)
        found.append(jax.device_get(compare(network.params, pair.views, pair.boxes, pair.flips, keys)))
    joined = jax.tree.map(lambda *parts: np.concatenate(parts), *found)
    return {label: {kind: summarise(kinds[kind]) for kind in KINDS} for label, kinds in joined.items()}


def run(networks: Sequence[Network], workdir: Path, settings: Settings) -> None:
    """Print one table a variant and write workdir/eval/relations.json. Of several processes the first does all the work."""
    if jax.process_index() != 0:
        return
    variants = settings.variants
    _check(networks, settings)  # all of them before the first is worked on
    shown = [*networks, *([untrained(networks[0], settings.seed)] if settings.random else [])]
    results = {network.name: measure(network, settings) for network in shown}
    for variant in variants:
        _show(variant, {name: found[variant.label] for name, found in results.items()}, last=variant == variants[-1])
    views = dataclasses.asdict(settings.views)
    details = {"protocol": "relations", "source": settings.source, "views": views, "points": settings.points, "seed": settings.seed}
    table.write(workdir / "eval" / "relations.json", {**details, "results": _listed(results, shown)})


def _show(variant: Variant, found: dict[str, dict[str, Summary]], *, last: bool) -> None:
    rows = []
    for name, kinds in found.items():
        cells = [name]
        for kind in KINDS:
            s = kinds[kind]
            cells += [f"{s.ratio:.3f} ±{s.ratio_error:.3f}", f"{s.same:.3f}", f"{s.different:.3f}", f"{s.uniform:.3f}"]
        rows.append(cells)
    columns = ["", *(f"{kind}\n{name}" for kind in KINDS for name in ("ratio", "same", "different", "uniform"))]
    note = "ratio = L1 between two views of an image (same) / between views of different images; uniform = L1 to a uniform relation."
    table.show(f"Self-relation differences, {variant.label}", columns, rows, [note] if last else [])


def _listed(results: dict[str, dict[str, dict[str, Summary]]], networks: Sequence[Network]) -> list[dict[str, Any]]:
    def plain(kinds: dict[str, Summary]) -> dict[str, Any]:
        return {kind: summary._asdict() for kind, summary in kinds.items()}

    return [{"name": n.name, **n.about, "variants": {label: plain(kinds) for label, kinds in results[n.name].items()}} for n in networks]
