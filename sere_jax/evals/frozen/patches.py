"""Two protocols that segment with frozen patch tokens: their nearest patches, and logistic regression."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from sere_jax.buckets import Location
from sere_jax.config.rule import POSITIVE, Rule, count
from sere_jax.data.images.reading import ImageReading
from sere_jax.evals.frozen import logistic, patch_data
from sere_jax.evals.frozen.patch_data import Encode, Patches, PatchSettings
from sere_jax.evals.frozen.patch_probe import Fit, Logits, Probe, Setting, nearest
from sere_jax.evals.frozen.patch_votes import DISTANCES
from sere_jax.evals.frozen.patches_in_training import periodic
from sere_jax.evals.network import Network, shared_reading, untrained
from sere_jax.evals.outcome import slugs
from sere_jax.evals.pictures import LeftOut
from sere_jax.evals.protocol import Protocol
from sere_jax.evals.segmentation import outcome
from sere_jax.evals.segmentation.outcome import Outcome, Row
from sere_jax.evals.segmentation.pictures import PictureFiles
from sere_jax.reporting import table


class KnnSettings(NamedTuple):
    """The keys of `configs/eval/patch_knn.py`."""

    train: str
    test: str
    train_images: int
    classes: int
    ignore: tuple[int, ...]
    zero_ignored: bool
    absent: Any
    select: str
    held_out: float
    neighbours: tuple[int, ...]
    distances: tuple[str, ...]
    size: int
    batch_size: int
    reading: ImageReading
    baselines: bool
    save_predictions: bool
    panels: int
    seed: int


class LogisticSettings(NamedTuple):
    """The keys of `configs/eval/patch_logistic.py`."""

    train: str
    test: str
    train_images: int
    classes: int
    ignore: tuple[int, ...]
    zero_ignored: bool
    absent: Any
    select: str
    held_out: float
    cs: tuple[float, ...]
    tolerance: float
    max_steps: int
    size: int
    batch_size: int
    reading: ImageReading
    baselines: bool
    save_predictions: bool
    panels: int
    seed: int


def run_knn(networks: Sequence[Network], workdir: Location, settings: KnnSettings) -> None:
    """Print the table and write what `segmentation.outcome` lists. Process 0 does all the work.

    Every pair of k and distance is tried on the held-out training images; the best mIoU decides.
    """
    grid = [(k, distance) for k in settings.neighbours for distance in settings.distances]
    _run("patch_knn", "segmentation by nearest patches", networks, workdir, settings, grid, ("k", "distance"), nearest)


def run_logistic(networks: Sequence[Network], workdir: Location, settings: LogisticSettings) -> None:
    """Print the table and write what `segmentation.outcome` lists. Process 0 does all the work.

    Features are standardised on the patches that are fitted. Every C is tried on the held-out training images; the best mIoU decides.
    """

    def fit(patches: Patches, classes: int, tried: Sequence[Setting]) -> Logits:
        mean = patches.features.mean(axis=0, dtype=np.float64)
        deviation = patches.features.std(axis=0, dtype=np.float64)
        deviation = np.where(deviation > 1e-6, deviation, 1.0)  # a constant stays constant

        def scaled(features: np.ndarray) -> np.ndarray:
            return ((features - mean) / deviation).astype(np.float32)

        solver = logistic.Solver(
            scaled(patches.features), patches.labels, classes=classes, tolerance=settings.tolerance, max_steps=settings.max_steps
        )
        fits = {(c,): result.classifier for c, result in solver.path([c for (c,) in tried])}
        return lambda queries: {setting: classifier(scaled(queries)) for setting, classifier in fits.items()}

    grid = [(c,) for c in settings.cs]
    _run("patch_logistic", "segmentation by logistic regression on patches", networks, workdir, settings, grid, ("C",), fit)


def _run(
    protocol: str,
    title: str,
    networks: Sequence[Network],
    workdir: Location,
    settings: Any,
    grid: Sequence[Setting],
    names: tuple[str, ...],
    fit: Fit,
) -> None:
    if jax.process_index() != 0:
        return
    data = PatchSettings(*(getattr(settings, name) for name in PatchSettings._fields))
    data = data._replace(reading=shared_reading(networks, data.reading))
    table.say(f"{title}: opening {data.train} and {data.test}")
    sources = patch_data.open_sources(data)
    rows, left_out = [], {"train": LeftOut(), "test": LeftOut()}
    contestants = list(_contestants(networks, data))
    for (name, about, encode), slug in zip(contestants, slugs([name for name, _, _ in contestants]), strict=True):
        probe = Probe(sources, data, encode, left_out, grid, fit, name)
        setting, tried = probe.choose()
        trained = name not in ("raw pixels", "random init")
        where = workdir / "eval" / f"{protocol}-{slug}-predictions" if trained and data.save_predictions else None
        files = PictureFiles(sources.labelling, directory=where, count=data.panels if trained else 0)
        tally = probe.test(setting, files)
        scores = tally.scores(data.absent, objects=not sources.labelling.zero_ignored)
        files.draw(workdir / "figures" / f"{protocol}-{slug}.png", f"{title}: {name}, mIoU {100 * scores['miou']:.1f} %", [data.test])
        head = dict(zip(names, setting, strict=True))
        rows.append(Row(name, scores, tally.counts, head, about, not trained, {"selection_miou": tried}))
    side, patch = data.size or networks[0].size, networks[0].patch
    shown = {key: value for key, value in settings._asdict().items() if key not in ("reading", "save_predictions", "panels")}
    images = patch_data.images_of(data, sources, left_out)
    heading = f"{title}: {images['test'].read:,} images of {data.test}, {len(sources.labelling.classes):,} classes"
    report = [*patch_data.notes(data, sources, side, patch)]
    outcome.publish(Outcome(protocol, heading, shown, images, sources.labelling, rows, report), workdir)


def _contestants(networks: Sequence[Network], data: PatchSettings) -> Iterator[tuple[str, Mapping[str, Any], Encode]]:
    """Names, origins and encoders: raw pixels, the first network at random initialisation, then the networks."""
    encoders = [patch_data.encoder(network, data.size, data.batch_size) for network in networks]  # checks all sizes first
    if data.baselines:
        yield "raw pixels", {}, patch_data.raw_pixels(networks[0], encoders[0][1])
        if networks[0].init is not None:
            random = untrained(networks[0], data.seed)
            yield random.name, random.about, patch_data.encoder(random, data.size, data.batch_size)[0]
    for network, (encode, _) in zip(networks, encoders, strict=True):
        yield network.name, network.about, encode


PATCH_KNN = Protocol(
    "patch_knn",
    {**patch_data.RULES, "neighbours": Rule(int, low=1, length=0), "distances": Rule(str, choices=DISTANCES, length=0)},
    KnnSettings,
    run_knn,
    columns=outcome.columns,
    periodic=periodic,
)
PATCH_LOGISTIC = Protocol(
    "patch_logistic",
    {**patch_data.RULES, "cs": Rule(float, low=0.0, above=True, length=0), "tolerance": POSITIVE, "max_steps": count(1)},
    LogisticSettings,
    run_logistic,
    columns=outcome.columns,
)
