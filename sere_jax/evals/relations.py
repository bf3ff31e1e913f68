"""The protocol of Fig. 6: how invariant are the self-relations of each network to augmentation? See `analysis`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from sere_jax.data.decode import Backend
from sere_jax.data.sources import open_source
from sere_jax.data.views import ViewRecipe
from sere_jax.evals import report
from sere_jax.evals.analysis import Differences, Variant, compare_views
from sere_jax.evals.network import EvalError, Network, untrained
from sere_jax.evals.views import compiled_look, pairs, view_keys
from sere_jax.ops.geometry import Sampling
from sere_jax.ops.photometric import PhotometryParams

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


class Measurement(NamedTuple):
    """On which images, views and variants the networks are compared; every network sees the same pixels."""

    source: str
    images: int  # the first so many; 0: all
    recipe: ViewRecipe  # without local crops
    photometry: Sequence[PhotometryParams]  # of the first view and of the second
    variants: Sequence[Variant]
    points: int  # a side, on the overlap
    sampling: Sampling
    seed: int
    batch_size: int
    backend: Backend


def measure(network: Network, what: Measurement) -> dict[str, dict[str, Summary]]:
    """{variant label: {"spatial": Summary, "channel": Summary}}, from one pass over the images."""
    look = compiled_look(network, what.photometry, what.points, what.sampling)

    @jax.jit
    def compare(params: Any, views: Any, boxes: Any, flips: Any, keys: Any) -> dict[str, dict[str, Differences]]:
        seen = look(params, views, boxes, flips, keys)
        return {variant.label: compare_views(seen.first, seen.second, *seen.points, variant) for variant in what.variants}

    source = open_source(what.source)
    positions = range(min(len(source), what.images or len(source)))
    if len(positions) < 2 or what.batch_size < 2:
        raise EvalError(
            f"images: found {len(positions)} in batches of {what.batch_size}; expected at least 2, an image is compared with the next"
        )
    batches = pairs(source, positions, what.recipe, seed=what.seed, batch_size=what.batch_size, backend=what.backend)
    steps = -(-len(positions) // what.batch_size)
    found = []
    for pair in report.track(batches, f"{network.name}: relations", steps):
        keys = view_keys(what.seed, pair.positions)
        found.append(jax.device_get(compare(network.params, pair.views, pair.boxes, pair.flips, keys)))
    joined = jax.tree.map(lambda *parts: np.concatenate(parts), *found)
    return {label: {kind: summarise(kinds[kind]) for kind in KINDS} for label, kinds in joined.items()}


def evaluate(network: Network, what: Measurement) -> Iterator[tuple[str, float]]:
    """Yield ('normalised tokens, t = 1 / 1: spatial ratio', value) and so on."""
    for label, kinds in measure(network, what).items():
        for kind, summary in kinds.items():
            for name, value in summary._asdict().items():
                yield f"{label}: {kind} {name}", float(value)


def run(
    networks: Sequence[Network],
    workdir: Path,
    *,
    source: str,
    images: int,
    views: ViewRecipe,
    photometry: Sequence[PhotometryParams],
    tokens: tuple[str, ...],
    spatial_temperatures: tuple[float, ...],
    channel_temperatures: tuple[float, ...],
    heads: int,
    points: int,
    sampling: Sampling,
    size: int,
    batch_size: int,
    backend: Backend,
    random: bool,
    seed: int,
) -> None:
    """Print one table a variant and write workdir/eval/relations.json. Of several processes the first does all the work."""
    if jax.process_index() != 0:
        return
    if len(spatial_temperatures) != len(channel_temperatures):
        wanted = len(spatial_temperatures)
        raise EvalError(f"channel_temperatures: found {len(channel_temperatures)}, expected {wanted}, one for each of spatial_temperatures")
    temperatures = list(zip(spatial_temperatures, channel_temperatures, strict=True))
    variants = [Variant(kind, s, c, heads) for kind in tokens for s, c in temperatures]  # type: ignore[arg-type]
    shown = [*networks, *([untrained(networks[0], seed)] if random else [])]
    results: dict[str, dict[str, dict[str, Summary]]] = {}
    for network in shown:
        recipe = dataclasses.replace(views, local_count=0, global_size=size or network.size)
        what = Measurement(source, images, recipe, photometry[:2], variants, points, sampling, seed, batch_size, backend)
        results[network.name] = measure(network, what)
    for variant in variants:
        _show(variant, {name: found[variant.label] for name, found in results.items()}, last=variant == variants[-1])
    details = {"protocol": "relations", "source": source, "views": dataclasses.asdict(views), "points": points, "seed": seed}
    report.write(workdir / "eval" / "relations.json", {**details, "results": _listed(results, shown)})


def _show(variant: Variant, found: dict[str, dict[str, Summary]], *, last: bool) -> None:
    rows = []
    for name, kinds in found.items():
        cells = [name]
        for kind in KINDS:
            s = kinds[kind]
            cells += [f"{s.ratio:.3f} ±{s.ratio_error:.3f}", f"{s.same:.3f}", f"{s.different:.3f}", f"{s.uniform:.3f}"]
        rows.append(cells)
    columns = ["", *(f"{kind} {name}" for kind in KINDS for name in ("ratio", "same", "different", "uniform"))]
    note = "ratio = L1 between two views of an image (same) / between views of different images; uniform = L1 to a uniform relation."
    report.show(f"Self-relation differences, {variant.label}", columns, rows, [note] if last else [])


def _listed(results: dict[str, dict[str, dict[str, Summary]]], networks: Sequence[Network]) -> list[dict[str, Any]]:
    def plain(kinds: dict[str, Summary]) -> dict[str, Any]:
        return {kind: summary._asdict() for kind, summary in kinds.items()}

    return [{"name": n.name, **n.about, "variants": {label: plain(kinds) for label, kinds in results[n.name].items()}} for n in networks]
