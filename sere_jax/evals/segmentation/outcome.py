"""The outcome of a segmentation: scores from counted pixels, and everything that is printed and written beside them.

Every protocol that ends in a class for each pixel makes a `Tally` for each network, one `Row` of it, and calls `publish`.

Files below the workdir, where NAME is the protocol and ROW the name of a network in lower case:

    eval/NAME.json                    scores, the whole protocol, images read and left out, origin of the weights
    eval/NAME-ROW-classes.csv         pixels, intersection over union and recall of each class
    eval/NAME-ROW-confusion.csv       pixels of each class (row) by predicted class (column)
    eval/NAME-ROW-predictions/*.png   with `save_predictions`: the predicted label maps
    figures/NAME-ROW.png              image, truth, prediction and error of some images
    eval/tensorboard/ROW/             scalars NAME/miou, ... at the step of the checkpoint
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from sere_jax.buckets import Location
from sere_jax.evals import outcome_files
from sere_jax.evals.outcome import Images, baseline_notes, image_notes, label, origin_notes, protocol_note, report, slugs
from sere_jax.evals.segmentation import scores
from sere_jax.evals.segmentation.labelling import Labelling
from sere_jax.evals.segmentation.scores import Absent
from sere_jax.reporting import table

HEADINGS = {
    "miou": "mIoU",
    "macc": "mAcc",
    "pixel_accuracy": "pixel\naccuracy",
    "f": "F",
    "object_iou": "object\nIoU",
    "background_iou": "background\nIoU",
}


class Tally:
    """Counts the pixels of all images of one network in one confusion matrix, and the F of each image.

    >>> tally = Tally(2)
    >>> tally.add(np.array([[0, 1]]), np.array([[0, 0]]))
    >>> tally.images, tally.scores()["pixel_accuracy"], tally.scores(objects=True)["f"]
    (1, 0.5, 0.0)
    """

    def __init__(self, classes: int) -> None:
        self.counts: Int[np.ndarray, "c c"] = np.zeros((classes, classes), np.int64)
        self._f, self.images = 0.0, 0  # sum over the images, and their number

    def add(self, truth: Int[np.ndarray, "H W"], predicted: Int[np.ndarray, "H W"]) -> None:
        """Count one image."""
        counts = scores.confusion(truth, predicted, len(self.counts))
        self.counts += counts
        self._f += scores.f_measure(counts)
        self.images += 1

    def summed(self, add: Callable[[np.ndarray], np.ndarray]) -> Tally:
        """The tally of the images of all processes; `add` sums an array over them."""
        result = Tally(len(self.counts))
        result.counts, numbers = add(self.counts), add(np.array([self._f, self.images]))
        result._f, result.images = float(numbers[0]), int(numbers[1])
        return result

    def scores(self, absent: Absent = "skip", objects: bool = False) -> dict[str, float]:
        """Shares in [0, 1]: `miou`, `macc`, `pixel_accuracy`.

        With `objects`, where class 0 is the background: `f`, the mean over all images, of which those whose pixels are all ignored
        count as 0 (`scores.f_measure`), and Table 9's IoU and `f_of_all_pixels` of all pixels together, which such images do not change.
        """
        result = scores.score(self.counts, absent)
        if objects:
            binary = scores.binary(self.counts)
            result |= {"f": self._f / max(self.images, 1), "object_iou": binary.object_iou, "background_iou": binary.background_iou}
            result |= {"mean_of_both_iou": binary.mean_iou, "f_of_all_pixels": binary.f}
        return result


class Row(NamedTuple):
    """One line of the table."""

    name: str
    scores: Mapping[str, float]
    counts: Int[np.ndarray, "c c"]
    head: Mapping[str, Any]  # what was chosen for this row: {"k": 10, "distance": "cosine"}
    about: Mapping[str, Any]  # origin of the weights
    baseline: bool
    details: Mapping[str, Any] = {}  # for the JSON file alone


class Outcome(NamedTuple):
    """All that a segmentation protocol reports."""

    protocol: str  # names the files
    title: str
    settings: Mapping[str, Any]  # the whole protocol, printed beside the scores
    images: Mapping[str, Images]  # by part
    labelling: Labelling
    rows: Sequence[Row]  # baselines first
    notes: Sequence[str] = ()


def publish(outcome: Outcome, workdir: Location) -> None:
    """Print the table and write the files of the module's docstring but pictures, which are written while images are read."""
    notes = [*outcome.notes, *_notes(outcome)]
    names = [name for name in dict.fromkeys(name for line in outcome.rows for name in line.scores) if name in HEADINGS]
    cells = [[label(line.name, line.head), *(f"{100 * line.scores[name]:.1f}" for name in names)] for line in outcome.rows]
    table.show(outcome.title, ["%", *(HEADINGS[name] for name in names)], cells, notes)
    facts = report(outcome.protocol, outcome.settings, outcome.images, len(outcome.labelling.classes), outcome.rows, notes)
    table.write(workdir / "eval" / f"{outcome.protocol}.json", facts)
    if jax.process_index() != 0:
        return
    for line, slug in zip(outcome.rows, slugs([line.name for line in outcome.rows]), strict=True):
        if line.baseline:
            continue
        values = {f"{outcome.protocol}/{name}": value for name, value in line.scores.items()}
        outcome_files.write_scalars(workdir / "eval" / "tensorboard" / slug, int(line.about.get("step") or 0), values)
        stem, classes = f"{outcome.protocol}-{slug}", outcome.labelling.classes
        outcome_files.write_csv(workdir / "eval" / f"{stem}-classes.csv", list(class_lines(line.counts, classes)))
        outcome_files.write_csv(workdir / "eval" / f"{stem}-confusion.csv", outcome_files.confusion_lines(line.counts, classes))


def class_lines(counts: Int[np.ndarray, "c c"], classes: Sequence[str]) -> Iterator[list[Any]]:
    """A heading, then for each class: its pixels, the predicted ones, the right ones, IoU and recall; "" where there are none.

    >>> list(class_lines(np.array([[3, 1], [0, 0]]), ["wall", "sky"]))[1:]
    [['wall', 4, 3, 3, 0.75, 0.75], ['sky', 0, 1, 0, 0.0, '']]
    """
    yield ["class", "pixels", "predicted", "correct", "iou", "recall"]
    columns = counts.sum(axis=1), counts.sum(axis=0), counts.diagonal()
    shares = scores.class_iou(counts), scores.class_recall(counts)
    for number, name in enumerate(classes):
        yield [name, *(int(column[number]) for column in columns), *(_share(share[number]) for share in shares)]


def columns(report: Mapping[str, Any]) -> dict[str, float]:
    """mIoU in percent of the first row of a report's network, for the rows of an ablation."""
    rows = [result for result in report["results"] if not result["baseline"]]
    return {f"{report['protocol'].replace('_', ' ')} mIoU": 100 * result["scores"]["miou"] for result in rows[:1]}


def _share(value: float) -> float | str:
    return "" if np.isnan(value) else round(float(value), 6)


def _notes(outcome: Outcome) -> Iterator[str]:
    """The protocol in a line, the images of each part, the origin of the weights."""
    yield protocol_note(outcome.protocol, outcome.settings)
    yield f"{len(outcome.labelling.classes):,} classes; scores count the pixels of the label maps in the size of the images"
    yield from image_notes(outcome.images)
    yield from origin_notes((line.name, line.about) for line in outcome.rows)
    yield from baseline_notes(outcome.rows, "miou", "mIoU")
