"""Two protocols that segment with frozen patch tokens: their nearest patches, and logistic regression."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from sere_jax.buckets import Location
from sere_jax.config.rule import POSITIVE, Rule, count
from sere_jax.data.images.reading import ImageReading
from sere_jax.data.sources.example import Source
from sere_jax.evals.frozen import logistic, patch_data
from sere_jax.evals.frozen.patch_data import Encode, Patches, PatchSettings, Sources, grouped
from sere_jax.evals.frozen.patch_votes import DISTANCES, Gallery
from sere_jax.evals.network import Network, shared_reading, untrained
from sere_jax.evals.outcome import slugs
from sere_jax.evals.pictures import LeftOut
from sere_jax.evals.protocol import Protocol
from sere_jax.evals.segmentation import outcome
from sere_jax.evals.segmentation.images import MaskedPicture, read_masked
from sere_jax.evals.segmentation.outcome import Outcome, Row, Tally
from sere_jax.evals.segmentation.pictures import PictureFiles
from sere_jax.evals.segmentation.stretch import stretched_classes
from sere_jax.reporting import table
from sere_jax.reporting.progress import track

Setting = tuple[Any, ...]  # (k, distance), or (C,)
Logits = Callable[[Float[np.ndarray, "q d"]], Mapping[Setting, Float[np.ndarray, "q c"]]]
# Patches to fit on, number of classes, settings to fit -> their logits of any patches.
Fit = Callable[[Patches, int, Sequence[Setting]], Logits]


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

    def fit(patches: Patches, classes: int, tried: Sequence[Setting]) -> Logits:
        gallery = Gallery(patches.features, patches.labels, classes)

        def logits(queries: Float[np.ndarray, "q d"]) -> Mapping[Setting, Float[np.ndarray, "q c"]]:
            result: dict[Setting, np.ndarray] = {}
            for distance in DISTANCES:
                if neighbours := [k for k, one in tried if one == distance]:
                    votes = gallery.votes(queries, distance, neighbours)
                    result |= {(k, distance): value for k, value in votes.items()}
            return result

        return logits

    grid = [(k, distance) for k in settings.neighbours for distance in settings.distances]
    _run("patch_knn", "segmentation by nearest patches", networks, workdir, settings, grid, ("k", "distance"), fit)


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
        probe = _Probe(sources, data, encode, left_out, grid, fit, name)
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


class _Probe:
    """The patches of one network: settings are chosen on some training images, and tested."""

    def __init__(
        self,
        sources: Sources,
        data: PatchSettings,
        encode: Encode,
        left_out: Mapping[str, LeftOut],
        grid: Sequence[Setting],
        fit: Fit,
        name: str,
    ) -> None:
        self._sources, self._data, self._encode, self._left_out = sources, data, encode, left_out
        self._grid, self._fit, self._name = grid, fit, name
        self._classes = len(sources.labelling.classes)
        self._patches = patch_data.training_patches(encode, sources, data.reading, left_out["train"], name)

    def choose(self) -> tuple[Setting, dict[str, float]]:
        """The setting with the best mIoU on the images that choose, the first of equals; and the mIoU of each."""
        if len(self._grid) == 1:
            return self._grid[0], {}
        out = np.isin(self._patches.images, self._sources.selecting)
        if self._data.select == "test" or out.all() or not out.any():
            part, source, positions = self._patches, self._sources.test, range(len(self._sources.test))
        else:
            part, source = Patches(*(array[~out] for array in self._patches)), self._sources.train
            positions = self._sources.selecting.tolist()
        tallies = {setting: Tally(self._classes) for setting in self._grid}
        logits = self._fit(part, self._classes, self._grid)
        key = "test" if source is self._sources.test else "train"
        for picture, predictions in self._predicted(logits, source, positions, key):
            for setting, predicted in predictions.items():
                tallies[setting].add(picture.truth, predicted)
        miou = {setting: tally.scores(self._data.absent)["miou"] for setting, tally in tallies.items()}
        return max(self._grid, key=lambda setting: miou[setting]), {" ".join(map(str, s)): value for s, value in miou.items()}

    def test(self, setting: Setting, files: PictureFiles) -> Tally:
        """Fit all training patches with one setting, and count the pixels of the test images."""
        logits = self._fit(self._patches, self._classes, [setting])
        tally = Tally(self._classes)
        positions = track(range(len(self._sources.test)), f"{self._name}: test images")
        for picture, predictions in self._predicted(logits, self._sources.test, positions, "test"):
            (predicted,) = predictions.values()
            tally.add(picture.truth, predicted)
            files.add(picture, predicted)
        return tally

    def _predicted(
        self, logits: Logits, source: Source, positions: Iterable[int], part: str
    ) -> Iterator[tuple[MaskedPicture, dict[Setting, np.ndarray]]]:
        """Each image with the classes that each setting predicts. A batch of images is compared with the gallery at a time."""
        pictures = read_masked(source, positions, self._sources.labelling, self._left_out[part], self._data.reading)
        for group in grouped(self._encode(pictures), self._data.batch_size):
            flat = np.concatenate([patches.reshape(-1, patches.shape[-1]) for _, patches in group])
            answers = logits(flat)
            for number, (picture, patches) in enumerate(group):
                (height, width), count = patches.shape[:2], len(flat) // len(group)
                rows = slice(number * count, (number + 1) * count)
                yield picture, {s: stretched_classes(v[rows].reshape(height, width, -1), picture.shape) for s, v in answers.items()}


PATCH_KNN = Protocol(
    "patch_knn",
    {**patch_data.RULES, "neighbours": Rule(int, low=1, length=0), "distances": Rule(str, choices=DISTANCES, length=0)},
    KnnSettings,
    run_knn,
    columns=outcome.columns,
)
PATCH_LOGISTIC = Protocol(
    "patch_logistic",
    {**patch_data.RULES, "cs": Rule(float, low=0.0, above=True, length=0), "tolerance": POSITIVE, "max_steps": count(1)},
    LogisticSettings,
    run_logistic,
    columns=outcome.columns,
)
