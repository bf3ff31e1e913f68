"""Classifiers on cached features without augmentation: logistic regression, least squares in closed form, and a grid of SGD's heads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from sere_jax.buckets import Location
from sere_jax.config.rule import Rule
from sere_jax.data.images.reading import ImageReading
from sere_jax.evals import outcome
from sere_jax.evals.frozen import least_squares, linear_grid, logistic, probe_data
from sere_jax.evals.frozen.least_squares import Linear
from sere_jax.evals.frozen.linear_grid import GridSettings
from sere_jax.evals.frozen.probe_data import Contestant, ProbeData, Scaled
from sere_jax.evals.network import EvalError, Network
from sere_jax.evals.outcome import Outcome, Predictions, Row
from sere_jax.evals.protocol import Protocol
from sere_jax.reporting import table


class Chosen(NamedTuple):
    """The classifier of one kind of features."""

    classifier: Linear
    accuracy: float  # on the images that it was chosen by
    head: Mapping[str, Any]  # what was chosen
    tried: Mapping[str, float]  # setting -> accuracy on these images
    note: str = ""  # what a reader of the score needs to know of the fit


Fit = Callable[[Scaled, int], Chosen]  # features and labels, number of classes


class LogisticSettings(NamedTuple):
    """The keys of `configs/eval/logistic.py`."""

    train: str
    validation: str
    test: str
    select: str  # which images choose C and the kind of features: split | validation | test
    held_out: float  # share of the training images, with split
    blocks: tuple[int, ...]
    pooling: tuple[str, ...]
    scaling: str
    cs: tuple[float, ...]
    tolerance: float
    max_steps: int
    draws: int  # few-shot: number of random draws; 0: no few-shot
    shots: tuple[int, ...]
    shots_c: float
    size: int
    resize: int
    batch_size: int
    workers: int
    reading: ImageReading
    features: str
    save_predictions: bool
    seed: int


class LeastSquaresSettings(NamedTuple):
    """The keys of `configs/eval/least_squares.py`."""

    train: str
    validation: str
    test: str
    select: str
    held_out: float
    blocks: tuple[int, ...]
    pooling: tuple[str, ...]
    scaling: str
    regularisers: tuple[float, ...]
    size: int
    resize: int
    batch_size: int
    workers: int
    reading: ImageReading
    features: str
    save_predictions: bool
    seed: int


def run_logistic(networks: Sequence[Network], workdir: Location, settings: LogisticSettings) -> None:
    """Print the table and write what `outcome.publish` writes.

    For each network: fit every C on the training images that are not held out, take the one with the highest accuracy on those
    that are, and fit it again on all training images. Of several kinds of features the best is chosen in the same way.
    """

    def fit(data: Scaled, classes: int) -> Chosen:
        _check_shots(data.labels, classes, settings)
        solver = _solver(data.train, data.labels, classes, settings)
        fits = dict(solver.path(settings.cs, data.fit))
        accuracies = {c: _accuracy(result.classifier, data) for c, result in fits.items()}
        best = max(accuracies, key=lambda c: (accuracies[c], -c))
        final = fits[best] if data.all_fit else solver.fit(best, start=fits[best].classifier)
        tried = {f"{c:g}": accuracy for c, accuracy in accuracies.items()}
        return Chosen(final.classifier, accuracies[best], {"C": best}, tried, _unfinished(final, settings))

    def few(one: Contestant, chosen: Row, data: Scaled, classes: int) -> Iterator[Row]:
        for shots in settings.shots if settings.draws else ():
            yield _few_shot(one, shots, data, classes, settings)

    run("logistic", "logistic regression", networks, workdir, settings, _data(settings), fit, few)


def run_least_squares(networks: Sequence[Network], workdir: Location, settings: LeastSquaresSettings) -> None:
    """Print the table and write what `outcome.publish` writes. The regulariser is chosen as C is for `run_logistic`."""

    def fit(data: Scaled, classes: int) -> Chosen:
        sums = least_squares.moments(data.train[data.fit], data.labels[data.fit], classes)
        out = ~data.fit
        refit = None if data.all_fit else least_squares.together(sums, least_squares.moments(data.train[out], data.labels[out], classes))
        best = least_squares.choose(sums, (data.select, data.select_labels), settings.regularisers, refit)
        tried = {f"{value:g}": accuracy for value, accuracy in zip(settings.regularisers, best.accuracies, strict=True)}
        return Chosen(best.classifier, max(best.accuracies), {"regulariser": best.regulariser}, tried)

    run("least_squares", "least squares", networks, workdir, settings, _data(settings), fit)


def grid_fit(grid: GridSettings) -> Fit:
    """The `Fit` of linear classifiers by SGD: one for each rate on the images that are not held out, the best rate again on all."""

    def fit(data: Scaled, classes: int) -> Chosen:
        columns = {"features": (0, data.train.shape[1])}
        heads = linear_grid.train(data.train[data.fit], data.labels[data.fit], columns, classes=classes, settings=grid)
        accuracies = linear_grid.accuracies(heads, data.select, data.select_labels, columns)["features"]
        best = linear_grid.best_head({"features": accuracies}).rate
        tried = {f"{rate:g}": accuracy for rate, accuracy in zip(grid.rates, accuracies, strict=True)}
        one = Linear(np.asarray(heads["features"].kernel[:, best]), np.asarray(heads["features"].bias[best]))
        if not data.all_fit:
            alone = dataclasses.replace(grid, rates=(grid.rates[best],))
            (head,) = linear_grid.train(data.train, data.labels, columns, classes=classes, settings=alone).values()
            one = Linear(np.asarray(head.kernel[:, 0]), np.asarray(head.bias[0]))
        return Chosen(one, accuracies[best], {"rate": grid.rates[best]}, tried)

    return fit


def _nothing_more(one: Contestant, chosen: Row, data: Scaled, classes: int) -> Iterator[Row]:
    return iter(())


def run(
    protocol: str,
    title: str,
    networks: Sequence[Network],
    workdir: Location,
    settings: Any,
    data: ProbeData,
    fit: Fit,
    more: Callable[[Contestant, Row, Scaled, int], Iterator[Row]] = _nothing_more,
) -> None:
    """Print and write the rows of all contestants by `fit`, each followed by those of `more`.

    Args:
      settings: with `reading`, `save_predictions`, and all that is shown as the protocol.
      data: what of these concerns the features and the images.
    """
    sources = probe_data.open_sources(data)
    classes = sources.pair.classes
    rows: list[Row] = []
    notes: list[str] = []
    for one in probe_data.contestants(networks, sources, data, settings.reading):
        table.say(f"{title}: {one.name}, {len(one.train.labels):,} training images")
        line, scaled, note = _row(one, data, fit, len(classes))
        rows += [line, *more(one, line, scaled, len(classes))]
        notes += [f"{one.name}: {note}"] if note else []
    images = probe_data.images_of(sources, data, one)
    part = {"split": "held-out training", "validation": "validation", "test": "TEST"}[data.select]
    heading = f"{title}: {images['test'].read:,} images of {data.test}, {len(classes):,} classes; settings chosen on {part} images"
    shown = {key: value for key, value in settings._asdict().items() if key not in ("reading", "workers", "save_predictions", "features")}
    shown["backend"] = settings.reading.backend
    report = Outcome(protocol, heading, shown, images, classes, rows, [*probe_data.notes(sources, data), *notes])
    outcome.publish(report, workdir, save_predictions=settings.save_predictions)


def _data(settings: LogisticSettings | LeastSquaresSettings) -> ProbeData:
    return ProbeData(*(getattr(settings, name) for name in ProbeData._fields))


def _row(one: Contestant, data: ProbeData, fit: Fit, classes: int) -> tuple[Row, Scaled, str]:
    """The row of the best kind of features, these features, and the note on its fit."""
    best: tuple[Chosen, str, Scaled] | None = None
    tried = {}
    for kind in one.columns:
        scaled = probe_data.scaled(one, kind, data)
        chosen = fit(scaled, classes)
        tried[kind] = chosen.tried
        if best is None or chosen.accuracy > best[0].accuracy:
            best = chosen, kind, scaled
    assert best is not None  # a contestant has at least one kind
    chosen, kind, scaled = best
    predictions = Predictions(chosen.classifier(scaled.test), one.test.labels, one.test.positions)
    head = {**chosen.head, "features": kind}
    details = {"selection_accuracy": tried}
    return outcome.row(one.name, predictions, head=head, about=one.about, baseline=one.baseline, details=details), scaled, chosen.note


def _few_shot(one: Contestant, shots: int, data: Scaled, classes: int, settings: LogisticSettings) -> Row:
    """Mean and deviation of the accuracy over draws of `shots` training images a class, at one fixed C."""
    results = []
    for draw in range(settings.draws):
        rows = drawn(data.labels, shots, (settings.seed, shots, draw))
        classifier = _solver(data.train[rows], data.labels[rows], classes, settings).fit(settings.shots_c).classifier
        results.append(outcome.score(classifier(data.test), one.test.labels))
    extra = {name: float(np.mean([result[name] for result in results])) for name in results[0]}
    extra["deviation"] = float(np.std([result["top1"] for result in results], ddof=1)) if settings.draws > 1 else 0.0
    name = f"{one.name}, {shots} shot{'s' if shots > 1 else ''}"
    details = {"draws": [result["top1"] for result in results]}
    return outcome.row(name, None, extra=extra, head={"C": settings.shots_c}, about=one.about, baseline=one.baseline, details=details)


def _check_shots(labels: Int[np.ndarray, " n"], classes: int, settings: LogisticSettings) -> None:
    fewest = int(np.bincount(labels, minlength=classes).min())
    if settings.draws and max(settings.shots) > fewest:
        raise EvalError(f"shots: found {max(settings.shots)}, expected at most {fewest}: so many training images has the smallest class")


def _unfinished(fit: logistic.Fit, settings: LogisticSettings) -> str:
    """What is to be said of a fit that ended before its optimum."""
    if fit.gradient <= settings.tolerance:
        return ""
    return f"the fit ended at max_steps={settings.max_steps}, with a derivative of {fit.gradient:.1e}: its optimum may score otherwise"


def drawn(labels: Int[np.ndarray, " n"], shots: int, seed: tuple[int, ...]) -> Int[np.ndarray, " k"]:
    """Rows of `shots` random images of every class.

    >>> drawn(np.array([0, 1, 0, 1, 1]), 2, seed=(0,)).size
    4
    """
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.permutation(np.flatnonzero(labels == label))[:shots] for label in np.unique(labels)])


def _solver(features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], classes: int, s: LogisticSettings) -> logistic.Solver:
    return logistic.Solver(features, labels, classes=classes, tolerance=s.tolerance, max_steps=s.max_steps)


def _accuracy(classifier: Linear, data: Scaled) -> float:
    return float(np.mean(np.argmax(classifier(data.select), axis=1) == data.select_labels))


_POSITIVE = Rule(float, low=0.0, above=True)
LOGISTIC = Protocol(
    "logistic",
    {
        **probe_data.RULES,
        "cs": Rule(float, low=0.0, above=True, length=0),
        "tolerance": _POSITIVE,
        "max_steps": Rule(int, low=1),
        "draws": Rule(int, low=0),
        "shots": Rule(int, low=1, length=0),
        "shots_c": _POSITIVE,
    },
    LogisticSettings,
    run_logistic,
    columns=outcome.columns,
    among=probe_data.among,
)
LEAST_SQUARES = Protocol(
    "least_squares",
    {**probe_data.RULES, "regularisers": Rule(float, low=0.0, above=True, length=0)},
    LeastSquaresSettings,
    run_least_squares,
    columns=outcome.columns,
    among=probe_data.among,
)
