"""Networks and baselines judged by k-NN on the same images, side by side in one table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sere_jax.evals.features import Extractor
from sere_jax.evals.frozen import baselines, knn
from sere_jax.evals.network import Network, prepared, untrained
from sere_jax.reporting import table
from sere_jax.reporting.progress import track


class ImageSet(NamedTuple):
    """Labelled images at any size, as often as asked for, in the same order."""

    name: str
    batches: Callable[[int, int], Iterable[Any]]  # side of the crop, shorter side before it -> iterator of EvalBatch
    steps: int  # number of batches, for the progress bar


class Row(NamedTuple):
    """One line of the table."""

    name: str
    tokens: str  # "" for a baseline that knows no tokens
    accuracy: dict[str, float]  # "k10/top1" -> share
    about: dict[str, Any]

    @property
    def best(self) -> float:
        """Top-1 accuracy at the k that serves this row best."""
        return max(value for name, value in self.accuracy.items() if name.endswith("/top1"))


class Settings(NamedTuple):
    """How images are prepared (pixels, see `network.prepared`) and how the k-NN votes."""

    size: int = 0
    resize: int = 0
    neighbours: Sequence[int] = knn.KS
    temperature: float = knn.TEMPERATURE
    classes: int = 0


def network_rows(network: Network, gallery: ImageSet, query: ImageSet, tokens: tuple[str, ...], settings: Settings) -> list[Row]:
    """One row a kind of token, from a single pass over the images."""
    extract = Extractor(network.apply, mean=network.mean, std=network.std, tokens=tokens)
    found = []
    for images in (gallery, query):
        sides = prepared(network, settings.size, settings.resize)
        batches = track(images.batches(*sides), f"{network.name}: {images.name}", images.steps)
        found.append(extract(network.params, batches))
    rows = []
    for kind in tokens:
        sets = [knn.Labelled(one.features[kind], one.labels) for one in found]
        rows.append(Row(network.name, kind, _accuracy(sets[0], sets[1], settings), network.about))
    return rows


def baseline_rows(network: Network, gallery: ImageSet, query: ImageSet, seed: int, settings: Settings) -> list[Row]:
    """Raw pixels, the colour histogram, and the network at random initialisation (the better of cls and mean patch)."""
    sides = prepared(network, settings.size, settings.resize)
    rows = []
    for name, function in baselines.BASELINES.items():
        sets = [baselines.describe(function, track(s.batches(*sides), f"{name}: {s.name}", s.steps)) for s in (gallery, query)]
        rows.append(Row(name, "", _accuracy(sets[0], sets[1], settings), {}))
    both = network_rows(untrained(network, seed), gallery, query, ("cls", "patches"), settings)
    return [*rows, max(both, key=lambda row: row.best)]


def _accuracy(gallery: knn.Labelled, query: knn.Labelled, settings: Settings) -> dict[str, float]:
    found = knn.evaluate(gallery, query, neighbours=settings.neighbours, temperature=settings.temperature, classes=settings.classes)
    return dict(found)


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
    """All rows of the table: the baselines first, if wanted (the random network is of the first network's shape)."""
    rows = baseline_rows(networks[0], gallery, query, seed, settings) if with_baselines else []
    for network in networks:
        rows += network_rows(network, gallery, query, tokens, settings)
    return rows


def publish(
    rows: Sequence[Row], *, title: str, path: Path, details: dict[str, Any], gallery_images: int, neighbours: Sequence[int]
) -> None:
    """Print the table with the notes and write everything as JSON to `path`."""
    _, notes = knn.clip_ks(neighbours, gallery_images)
    notes = (*notes, *_origins(rows), *_verdicts(rows))
    names = list(rows[0].accuracy)
    cells = [[_label(row), *(f"{100 * row.accuracy[name]:.1f}" for name in names)] for row in rows]
    columns = ["accuracy, %", *(name.replace("k", "k=").replace("/", "\n") for name in names)]
    results = [{"name": r.name, "tokens": r.tokens, "best_top1": r.best, "accuracy": r.accuracy, **r.about} for r in rows]
    table.show(title, columns, cells, notes)
    table.write(path, {**details, "results": results, "notes": list(notes)})


def _label(row: Row) -> str:
    return row.name + (f" ({row.tokens.replace('patches', 'mean patch')})" if row.tokens else "")


def _origins(rows: Sequence[Row]) -> list[str]:
    """Which network of which step a row is, where that is known; once a checkpoint."""
    lines = [f"{row.name}: {row.about['network']} of step {row.about['step']}" for row in rows if row.about.get("step") is not None]
    return list(dict.fromkeys(lines))


def _verdicts(rows: Sequence[Row]) -> list[str]:
    """A trained network's error beside that of the best baseline, each at its own best k."""
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
