"""The outcome of a classification: scores from logits, and everything that is printed and written beside them.

Every protocol that ends in logits (`logistic`, `least_squares`, `linear`, `fine_tune`, ...) uses this module: it makes one
`Row` for each network and baseline with `row`, puts them into an `Outcome`, and calls `publish`.

    predictions = Predictions(logits, labels, positions)
    outcome = Outcome("logistic", title, settings, {"train": Images(...), "test": Images(...)}, classes, [row("vits", predictions)])
    publish(outcome, workdir, save_predictions=settings.save_predictions)

Files below the workdir, where NAME is the protocol and ROW the name of a network in lower case:

    eval/NAME.json                   scores, the whole protocol, images read and left out, origin of the weights
    eval/NAME-ROW-classes.csv        accuracy of each class, and the class that it is most often taken for
    eval/NAME-ROW-confusion.csv      images of each class (row) by predicted class (column)
    eval/NAME-ROW-predictions.npz    with `save_predictions`: logits [n, c], labels [n], positions [n], classes [c]
    figures/NAME-ROW.png             the confusion matrix and the accuracy of each class
    eval/tensorboard/ROW/            scalars NAME/top1, ... at the step of the checkpoint
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from sere_jax.buckets import Location
from sere_jax.evals import outcome_files as files
from sere_jax.evals import scores
from sere_jax.evals.network import EvalError, Network
from sere_jax.evals.pictures import left_out_note
from sere_jax.reporting import table

HEADINGS = {"top1": "top-1", "top5": "top-5", "per_class": "mean of\nclasses"}


class Predictions(NamedTuple):
    """Logits of labelled images. Any scores will do of which the largest names the class."""

    logits: Float[np.ndarray, "n c"]
    labels: Int[np.ndarray, " n"]
    positions: Int[np.ndarray, " n"]  # of the images in their source


class Images(NamedTuple):
    """The images of one part of the protocol (train, validation, test)."""

    source: str
    read: int
    left_out: Sequence[str] = ()  # names of the images that could not be read


class Row(NamedTuple):
    """One line of the table. Make it with `row`, which computes the scores."""

    name: str
    scores: Mapping[str, float]  # shares in [0, 1], by name: top1, top5, per_class, and others such as last_top1
    head: Mapping[str, Any]  # what was chosen for this row: {"C": 1.0, "tokens": "cls of 4 blocks"}
    about: Mapping[str, Any]  # origin of the weights: checkpoint, network, step, seed
    baseline: bool
    predictions: Predictions | None
    details: Mapping[str, Any]  # for the JSON file alone: the validation accuracies of a grid


class Outcome(NamedTuple):
    """All that a classification protocol reports."""

    protocol: str  # names the files
    title: str  # of the table
    settings: Mapping[str, Any]  # the whole protocol, printed beside the scores
    images: Mapping[str, Images]  # by part
    classes: Sequence[str]
    rows: Sequence[Row]  # baselines first
    notes: Sequence[str] = ()


def score(logits: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"]) -> dict[str, float]:
    """Shares of correct images: `top1`, `top5` where there are more than five classes, and `per_class`.

    `per_class` is the mean over the classes of the labels of each class's own top-1 accuracy, so that every class counts
    alike however many images it has. Equal logits are ranked by class number, lower first.

    Raises EvalError for logits that are not finite, for no images, and for labels that are no classes.

    >>> score(np.array([[2.0, 1.0], [3.0, 0.0], [2.0, 0.0], [0.0, 1.0]]), np.array([0, 0, 1, 0]))
    {'top1': 0.5, 'per_class': 0.3333333333333333}
    """
    _check(logits, labels)
    hits = scores.hits(logits, labels, 1)
    result = {"top1": float(np.mean(hits))}
    if logits.shape[1] > 5:
        result["top5"] = float(np.mean(scores.hits(logits, labels, 5)))
    images = np.bincount(labels)
    accuracy = np.bincount(labels, hits)[images > 0] / images[images > 0]
    return result | {"per_class": float(np.mean(accuracy))}


def confusion(logits: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"]) -> Int[np.ndarray, "c c"]:
    """Number of images of each class (row) by predicted class (column).

    >>> confusion(np.array([[2.0, 1.0], [3.0, 0.0], [2.0, 0.0]]), np.array([0, 0, 1])).tolist()
    [[2, 0], [1, 0]]
    """
    classes = logits.shape[1]
    return np.bincount(labels * classes + np.argmax(logits, axis=1), minlength=classes**2).reshape(classes, classes)


def row(
    name: str,
    predictions: Predictions | None,
    *,
    extra: Mapping[str, float] | None = None,
    head: Mapping[str, Any] | None = None,
    about: Mapping[str, Any] | None = None,
    baseline: bool = False,
    details: Mapping[str, Any] | None = None,
) -> Row:
    """A row with the scores of its predictions, followed by those of `extra`. Without predictions it has only `extra`."""
    computed = score(predictions.logits, predictions.labels) if predictions else {}
    return Row(name, computed | dict(extra or {}), head or {}, about or {}, baseline, predictions, details or {})


def network_row(network: Network, predictions: Predictions | None, *, baseline: bool = False, head: Mapping[str, Any] | None = None) -> Row:
    """The row of a network, with its name and origin."""
    return row(network.name, predictions, head=head, about=network.about, baseline=baseline)


def columns(report: Mapping[str, Any]) -> dict[str, float]:
    """Top-1 accuracy in percent of the first row of a report's network, for the rows of an ablation."""
    rows = [result for result in report["results"] if not result["baseline"] and "top1" in result["scores"]]
    return {f"{report['protocol'].replace('_', ' ')} top-1": 100 * result["scores"]["top1"] for result in rows[:1]}


def publish(outcome: Outcome, workdir: Location, *, save_predictions: bool = False) -> None:
    """Print the table and write all files that the module's docstring lists. Only process 0 prints and writes.

    Figures and CSV files are made for networks, not for baselines; predictions are saved for both.
    """
    notes = [*outcome.notes, *_notes(outcome)]
    names = list(dict.fromkeys(name for line in outcome.rows for name in line.scores))
    cells = [[label(line.name, line.head), *(_cell(line.scores.get(name)) for name in names)] for line in outcome.rows]
    headings = [HEADINGS.get(name, name.replace("_", " ")) for name in names]
    table.show(outcome.title, ["accuracy, %", *headings], cells, notes)
    facts = report(outcome.protocol, outcome.settings, outcome.images, len(outcome.classes), outcome.rows, notes)
    table.write(workdir / "eval" / f"{outcome.protocol}.json", facts)
    if jax.process_index() != 0:
        return
    for line, slug in zip(outcome.rows, slugs([line.name for line in outcome.rows]), strict=True):
        stem = f"{outcome.protocol}-{slug}"
        if line.predictions is not None and save_predictions:
            files.write_arrays(workdir / "eval" / f"{stem}-predictions.npz", {**line.predictions._asdict(), "classes": outcome.classes})
        if line.baseline:
            continue
        values = {f"{outcome.protocol}/{name}": value for name, value in line.scores.items()}
        files.write_scalars(workdir / "eval" / "tensorboard" / slug, int(line.about.get("step") or 0), values)
        if line.predictions is not None:
            counts = confusion(line.predictions.logits, line.predictions.labels)
            title = f"{outcome.protocol.replace('_', ' ')}: {line.name}, top-1 {100 * line.scores['top1']:.1f} %"
            files.write_confusion(workdir, stem, counts, outcome.classes, title)


def slugs(names: Sequence[str]) -> list[str]:
    """Names for files: lower case, anything but letters, digits, dots and underscores replaced, all different.

    >>> slugs(["ViT S [1]", "vit-s-1", "random init"])
    ['vit-s-1', 'vit-s-1-2', 'random-init']
    """
    result: list[str] = []
    for name in names:
        slug = re.sub(r"[^\w.]+", "-", name.lower()).strip("-.") or "network"
        number = 2
        unique = slug
        while unique in result:
            unique, number = f"{slug}-{number}", number + 1
        result.append(unique)
    return result


def _check(logits: np.ndarray, labels: np.ndarray) -> None:
    if not len(labels):
        raise EvalError("logits: found no images; expected at least one")
    if not np.isfinite(logits).all():
        bad = int((~np.isfinite(logits)).any(axis=1).sum())
        raise EvalError(f"logits: found numbers that are not finite for {bad:,} of {len(logits):,} images; expected finite ones")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise EvalError(f"labels: found {labels.min()} to {labels.max()}; expected 0 to {logits.shape[1] - 1}, the classes of the logits")


def label(name: str, head: Mapping[str, Any]) -> str:
    """The name of a row, with what was chosen for it.

    >>> label("run", {"k": 10, "rate": 0.125})
    'run (k 10, rate 0.125)'
    """
    return name + (f" ({', '.join(f'{key} {value_text(value)}' for key, value in head.items())})" if head else "")


def _cell(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def value_text(value: Any) -> str:
    """A setting as the notes show it: three digits of a float."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def protocol_note(protocol: str, settings: Mapping[str, Any]) -> str:
    """The whole protocol, wrapped."""
    values = ", ".join(f"{key}={value_text(value)}" for key, value in settings.items())
    return textwrap.fill(f"protocol {protocol}: {values}", 110, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def image_notes(images: Mapping[str, Images]) -> Iterator[str]:
    """How many images of each part were read, and which were left out."""
    for part, counts in images.items():
        yield f"{part}: {counts.read:,} images of {counts.source}"
        if note := left_out_note(f"{part} images", counts.left_out, counts.read + len(counts.left_out)):
            yield note


def origin_notes(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterator[str]:
    """Checkpoint, network, step and seed of each name, where something is known of it."""
    for name, about in rows:
        words = [f"{key} {about[key]}" for key in ("checkpoint", "network", "step", "seed") if about.get(key) is not None]
        if words:
            yield f"{name}: {', '.join(words)}"


def baseline_notes(rows: Sequence[Any], score: str, what: str) -> Iterator[str]:
    """By how many points each network's score is above or below that of the best baseline; nothing where no baseline was run."""
    best = max((line.scores[score] for line in rows if line.baseline), default=None)
    for line in rows:
        if best is not None and not line.baseline:
            points = 100 * (line.scores[score] - best)
            yield f"{line.name}: {abs(points):.1f} points of {what} {'above' if points >= 0 else 'below'} the best baseline"


def _notes(outcome: Outcome) -> Iterator[str]:
    """The protocol in one line, the images of each part, the precision of the scores, the origin of the weights."""
    yield protocol_note(outcome.protocol, outcome.settings)
    yield from image_notes(outcome.images)
    trained = [line for line in outcome.rows if not line.baseline]
    if trained and "top1" in trained[0].scores and "test" in outcome.images:
        share, count = trained[0].scores["top1"], outcome.images["test"].read
        error = math.sqrt(share * (1 - share) / count)
        yield f"{count:,} test images: a top-1 accuracy of {100 * share:.1f} % has a standard error of {100 * error:.1f} points"
    yield from origin_notes((line.name, line.about) for line in outcome.rows if line.predictions is not None)
    yield from _verdicts(outcome.rows)


def _verdicts(rows: Sequence[Row]) -> Iterator[str]:
    """How many points each network is above the best baseline. Rows without predictions, as of few images, are not compared."""
    rows = [line for line in rows if line.predictions is not None]
    baselines = [line for line in rows if line.baseline]
    if not baselines:
        return
    best = max(baselines, key=lambda line: line.scores["top1"])
    for line in rows:
        if not line.baseline:
            difference = 100 * (line.scores["top1"] - best.scores["top1"])
            yield f"{line.name}: {abs(difference):.1f} points {'above' if difference >= 0 else 'below'} the best baseline, {best.name}"


def report(
    protocol: str, settings: Mapping[str, Any], images: Mapping[str, Images], classes: int, rows: Iterable[Any], notes: Sequence[str]
) -> dict[str, Any]:
    """What eval/NAME.json holds. `rows` have name, baseline, scores, head, details and about, as those of both kinds of outcomes."""
    return {
        "protocol": protocol,
        "settings": {key: value if isinstance(value, int | float | str | bool) else str(value) for key, value in settings.items()},
        "images": {part: {"source": i.source, "read": i.read, "left_out": list(i.left_out)} for part, i in images.items()},
        "classes": classes,
        "results": [
            {
                "name": line.name,
                "baseline": line.baseline,
                "scores": dict(line.scores),
                "head": dict(line.head),
                **line.details,
                **line.about,
            }
            for line in rows
        ],
        "notes": list(notes),
    }
