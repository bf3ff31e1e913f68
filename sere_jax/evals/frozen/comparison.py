"""One table of networks and baselines, compared by k-NN on the same images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from sere_jax.buckets import Location
from sere_jax.config.keys import RULES as TRAINING
from sere_jax.config.rule import Rule
from sere_jax.evals.features import Extracted, Extractor
from sere_jax.evals.frozen import baselines, knn
from sere_jax.evals.network import Network, prepared, untrained
from sere_jax.reporting import table
from sere_jax.reporting.progress import track

SIDE = Rule(int, low=0)  # pixels; 0: the network's own
# The keys that k-NN and retrieval have in common.
RULES: Mapping[str, Rule] = {
    "tokens": Rule(str, choices=("cls", "patches", "cls+patches"), length=0),
    "neighbours": TRAINING["eval.neighbours"],
    "temperature": Rule(float, low=0.0, above=True),
    "size": SIDE,
    "batch_size": Rule(int, low=1),
    "max_pixels": TRAINING["data.max_pixels"],
    "baselines": Rule(bool),
    "seed": TRAINING["seed"],
}


def columns(report: Mapping[str, Any]) -> dict[str, float]:
    """The best top-1 accuracy in percent of each kind of token, from the report of one network."""
    protocol = {"knn": "k-NN"}.get(report["protocol"], report["protocol"])
    tokens = {"cls": "cls", "patches": "mean patch"}
    return {
        f"{protocol} top-1, {tokens.get(result['tokens'], result['tokens'])}": 100 * result["best_top1"] for result in report["results"]
    }


class ImageSet(NamedTuple):
    """Labelled images at any size, always in the same order."""

    name: str  # gallery | query
    batches: Callable[[int, int], Iterable[Any]]  # side of the crop, shorter side before it -> iterator of EvalBatch
    images: int  # number of images, for the progress display
    batch_size: int

    def read(self, sides: tuple[int, int], reader: str) -> Iterable[Any]:
        """The batches for `reader` (a network or baseline), with a progress display."""
        label = f"{reader}: {self.name}, {self.images:,} images in batches of {self.batch_size}"
        return track(self.batches(*sides), label, -(-self.images // self.batch_size))


class Read(NamedTuple):
    """The images behind a score. All counts are of images that could be read."""

    gallery: int
    query: int
    gallery_unreadable: tuple[int, ...]  # positions in the source
    query_unreadable: tuple[int, ...]
    in_both: int  # queries that are images of the gallery too, which do not vote on themselves
    without_class: int  # queries whose class no other image of the gallery has: they count as wrong
    voters: int  # images of the gallery that can vote on any query


class Row(NamedTuple):
    """One line of the table."""

    name: str
    tokens: str  # "" for a baseline, which has no tokens
    accuracy: dict[str, float]  # "k10/top1" -> share
    about: dict[str, Any]
    read: Read

    @property
    def best(self) -> float:
        """Top-1 accuracy at the k that is best for this row."""
        return max(value for name, value in self.accuracy.items() if name.endswith("/top1"))


class Settings(NamedTuple):
    """Preparation of the images (in pixels, see `network.prepared`) and settings of the k-NN."""

    size: int = 0
    resize: int = 0
    neighbours: Sequence[int] = knn.KS
    temperature: float = knn.TEMPERATURE
    classes: int = 0
    images: tuple[Int[np.ndarray, " g"], Int[np.ndarray, " q"]] | None = None  # numbers of the images at all positions of both sources


def network_rows(network: Network, gallery: ImageSet, query: ImageSet, tokens: tuple[str, ...], settings: Settings) -> list[Row]:
    """One row for each kind of token, from a single pass over the images."""
    sides = prepared(network, settings.size, settings.resize)
    extract = Extractor(network.apply, mean=network.mean, std=network.std, tokens=tokens)
    extracted = [extract(network.params, images.read(sides, network.name)) for images in (gallery, query)]
    return [_row(network.name, kind, network.about, extracted, kind, settings) for kind in tokens]


def baseline_rows(network: Network, gallery: ImageSet, query: ImageSet, seed: int, settings: Settings) -> list[Row]:
    """Raw pixels, the colour histogram for RGB images, and the random network (the better of cls and mean patch)."""
    sides = prepared(network, settings.size, settings.resize)
    rows = []
    for name, function in baselines.of_channels(network.channels).items():
        described = [baselines.describe(function, images.read(sides, name)) for images in (gallery, query)]
        rows.append(_row(name, "", {}, described, "baseline", settings))
    both = network_rows(untrained(network, seed), gallery, query, ("cls", "patches"), settings)
    return [*rows, max(both, key=lambda row: row.best)]


def _row(name: str, tokens: str, about: dict[str, Any], sets: Sequence[Extracted], kind: str, settings: Settings) -> Row:
    numbers = settings.images or (None, None)
    gallery, query = (knn.labelled(extracted, kind, images) for extracted, images in zip(sets, numbers, strict=True))
    accuracy = knn.evaluate(gallery, query, neighbours=settings.neighbours, temperature=settings.temperature, classes=settings.classes)
    return Row(name, tokens, dict(accuracy), about, _read(gallery, query, sets))


def _read(gallery: knn.Labelled, query: knn.Labelled, sets: Sequence[Extracted]) -> Read:
    copies = knn.copies(gallery, query)  # of each query in the gallery
    of_class = np.bincount(gallery.labels, minlength=int(query.labels.max()) + 1)[query.labels]
    return Read(
        gallery=len(gallery.labels),
        query=len(query.labels),
        gallery_unreadable=tuple(sets[0].unreadable.tolist()),
        query_unreadable=tuple(sets[1].unreadable.tolist()),
        in_both=int((copies > 0).sum()),
        without_class=int((of_class - copies < 1).sum()),
        voters=knn.voters(gallery, query),
    )


def compare(
    networks: Sequence[Network],
    gallery: ImageSet,
    query: ImageSet,
    *,
    tokens: tuple[str, ...],
    with_baselines: bool,
    seed: int,
    settings: Settings,
) -> list[Row]:
    """All rows of the table, baselines first. The random network has the architecture of the first network.

    Raises EvalError, before any image is read, where the size of the images does not suit one of the networks.
    """
    for network in networks:
        prepared(network, settings.size, settings.resize)
    rows = baseline_rows(networks[0], gallery, query, seed, settings) if with_baselines else []
    for network in networks:
        rows += network_rows(network, gallery, query, tokens, settings)
    return rows


def publish(
    rows: Sequence[Row], *, title: str, path: Location, details: dict[str, Any], neighbours: Sequence[int], notes: Sequence[str] = ()
) -> None:
    """Print the table with its notes and write everything as JSON to `path`."""
    _, clipped = knn.clip_ks(neighbours, rows[0].read.voters)
    notes = (*notes, *clipped, *_uneven(rows), *_origins(rows), *_verdicts(rows))
    names = list(rows[0].accuracy)
    cells = [[_label(row), *(f"{100 * row.accuracy[name]:.1f}" for name in names)] for row in rows]
    columns = ["accuracy, %", *(name.replace("k", "k=").replace("/", "\n") for name in names)]
    results = [{"name": r.name, "tokens": r.tokens, "best_top1": r.best, "accuracy": r.accuracy, **r.about} for r in rows]
    table.show(title, columns, cells, notes)
    table.write(path, {**details, "results": results, "notes": list(notes)})


def _label(row: Row) -> str:
    return row.name + (f" ({row.tokens.replace('patches', 'mean patch')})" if row.tokens else "")


def _uneven(rows: Sequence[Row]) -> list[str]:
    """Notes on rows whose images differ from the first row's. Files may appear or vanish between two passes."""
    different = [row for row in rows if row.read != rows[0].read]
    return [
        f"{_label(row)}: scored on other images than the first row ({row.read.query} query, {row.read.gallery} gallery images)"
        for row in different
    ]


def _origins(rows: Sequence[Row]) -> list[str]:
    """Network and step of each checkpoint, if known."""
    lines = [f"{row.name}: {row.about['network']} of step {row.about['step']}" for row in rows if row.about.get("step") is not None]
    return list(dict.fromkeys(lines))


def _verdicts(rows: Sequence[Row]) -> list[str]:
    """The error of each trained network over that of the best baseline, each at its own best k."""
    base = [row for row in rows if _is_baseline(row)]
    if not base:
        return []
    best = max(base, key=lambda row: row.best)
    lines = []
    for row in rows:
        if not _is_baseline(row):
            ratio = (1 - row.best) / max(1 - best.best, 1e-9)
            lines.append(
                f"{_label(row)}: error {1 - row.best:.3f}, {ratio:.2f} x the best baseline's ({_label(best)}: {1 - best.best:.3f})"
            )
    return lines


def _is_baseline(row: Row) -> bool:
    return row.name in baselines.BASELINES or row.name == "random init"
