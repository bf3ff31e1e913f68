"""The outcome of a detection: average precision of boxes and masks, and everything that is printed and written beside it.

Files below the workdir, where NAME is the protocol and ROW the name of a network in lower case:

    eval/NAME.json               scores, the whole protocol, images read and left out, origin of the weights
    eval/NAME-ROW-bbox.json      the detected boxes, and
    eval/NAME-ROW-segm.json      the detected masks, as COCO's result files
    eval/NAME-ROW-classes.csv    objects of each class, and its AP, AP50 and AP75 of boxes and masks
    figures/NAME-ROW.png         precision over recall, and the AP of each class
    figures/NAME-ROW-images.png  some images with their truth and what was detected
    eval/tensorboard/ROW/        scalars NAME/box_ap, ... at the step of the checkpoint
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from sere_jax.buckets import Location
from sere_jax.evals import outcome_files
from sere_jax.evals.detection.pictures import DrawnImages, draw_precision
from sere_jax.evals.detection.scores import KINDS, Kind, Precision, Truth, precision
from sere_jax.evals.outcome import Images, baseline_notes, image_notes, label, origin_notes, protocol_note, report, slugs
from sere_jax.reporting import table
from sere_jax.writing import replacing

_WORDS: dict[Kind, str] = {"bbox": "box", "segm": "mask"}
_SCORES = {"ap": "AP", "ap50": "AP50", "ap75": "AP75", "ap_small": "AP\nsmall", "ap_medium": "AP\nmedium", "ap_large": "AP\nlarge"}
HEADINGS = {f"{word}_{name}": f"{word} {heading}" for word in _WORDS.values() for name, heading in _SCORES.items()}


class Judged(NamedTuple):
    """The results of one network on the test images, and their precision by kind: boxes, and masks where there are any."""

    results: Sequence[Mapping[str, Any]]
    precisions: Mapping[Kind, Precision]

    def scores(self) -> dict[str, float]:
        """Shares in [0, 1]: box_ap, box_ap50, ..., mask_ap_large."""
        return {f"{_WORDS[kind]}_{name}": value for kind, one in self.precisions.items() for name, value in one.scores().items()}


class Row(NamedTuple):
    """One line of the table. `judged` is None where only `scores` are known."""

    name: str
    scores: Mapping[str, float]
    judged: Judged | None
    head: Mapping[str, Any]
    about: Mapping[str, Any]  # origin of the weights
    baseline: bool
    details: Mapping[str, Any] = {}  # for the JSON file alone
    drawn: DrawnImages | None = None


class Outcome(NamedTuple):
    """All that a detection protocol reports."""

    protocol: str  # names the files
    title: str
    settings: Mapping[str, Any]  # the whole protocol, printed beside the scores
    images: Mapping[str, Images]  # by part
    classes: Sequence[str]
    truth: Truth
    rows: Sequence[Row]  # baselines first
    notes: Sequence[str] = ()


def judge(truth: Truth, results: Sequence[Mapping[str, Any]], left_out: Collection[int] = ()) -> Judged:
    """The precision of results: of boxes, and of masks where truth and results have them.

    `left_out` are positions of images that could not be read: their objects do not count as missed.
    """
    masks = truth.masks and all("segmentation" in result for result in results)
    unread = {truth.image_ids[position] for position in left_out}
    table = {
        "images": [image for image in truth.table["images"] if image["id"] not in unread],
        "categories": truth.table["categories"],
        "annotations": [entry for entry in truth.table["annotations"] if entry["image_id"] not in unread],
    }
    return Judged(results, {kind: precision(table, results, kind) for kind in (KINDS if masks else KINDS[:1])})


def publish(outcome: Outcome, workdir: Location) -> None:
    """Print the table and write the files that the module's docstring lists. Only process 0 prints and writes."""
    notes = [*outcome.notes, *_notes(outcome)]
    names = [name for name in HEADINGS if any(name in line.scores for line in outcome.rows)]
    cells = [[label(line.name, line.head), *(_cell(line.scores.get(name)) for name in names)] for line in outcome.rows]
    table.show(outcome.title, ["%", *(HEADINGS[name] for name in names)], cells, notes)
    facts = report(outcome.protocol, outcome.settings, outcome.images, len(outcome.classes), outcome.rows, notes)
    table.write(workdir / "eval" / f"{outcome.protocol}.json", facts)
    if jax.process_index() != 0:
        return
    for line, slug in zip(outcome.rows, slugs([line.name for line in outcome.rows]), strict=True):
        if not line.baseline:
            _write(outcome, line, workdir, slug)


def _write(outcome: Outcome, line: Row, workdir: Location, slug: str) -> None:
    stem = f"{outcome.protocol}-{slug}"
    values = {f"{outcome.protocol}/{name}": value for name, value in line.scores.items()}
    outcome_files.write_scalars(workdir / "eval" / "tensorboard" / slug, int(line.about.get("step") or 0), values)
    if line.drawn is not None:
        title = f"{outcome.protocol}: {line.name}, box AP {_cell(line.scores.get('box_ap'))} %"
        line.drawn.draw(workdir / "figures" / f"{stem}-images.png", title)
    if line.judged is None:
        return
    for kind, left_out in (("bbox", "segmentation"), ("segm", "bbox")):
        if kind in line.judged.precisions:
            entries = [{key: value for key, value in one.items() if key != left_out} for one in line.judged.results]
            with replacing(workdir / "eval" / f"{stem}-{kind}.json") as temporary:
                temporary.write_text(json.dumps(entries, separators=(",", ":")))
    outcome_files.write_csv(workdir / "eval" / f"{stem}-classes.csv", list(class_lines(outcome.truth, line.judged, outcome.classes)))
    title = f"{outcome.protocol}: {line.name}"
    draw_precision(workdir / "figures" / f"{stem}.png", line.judged.precisions, outcome.classes, title)


def class_lines(truth: Truth, judged: Judged, classes: Sequence[str]) -> Iterator[list[Any]]:
    """A heading, then for each class: its objects without crowds, and AP, AP50 and AP75 of each kind; "" where it has no objects."""
    yield ["class", "objects", *(f"{_WORDS[kind]}_{name}" for kind in judged.precisions for name in ("ap", "ap50", "ap75"))]
    of_classes = np.concatenate([one.of_classes() for one in judged.precisions.values()], axis=1)
    counts = dict.fromkeys(truth.class_ids, 0)
    for entry in truth.table["annotations"]:
        counts[entry["category_id"]] += not entry["iscrowd"]
    for name, id, values in zip(classes, truth.class_ids, of_classes, strict=True):
        yield [name, counts[id], *("" if np.isnan(value) else round(float(value), 6) for value in values)]


def columns(report: Mapping[str, Any]) -> dict[str, float]:
    """AP of boxes and masks in percent of the first row of a report's network, for the rows of an ablation."""
    rows = [result for result in report["results"] if not result["baseline"]]
    return {
        f"{report['protocol'].replace('_', ' ')} {word} AP": 100 * result["scores"][f"{word}_ap"]
        for result in rows[:1]
        for word in _WORDS.values()
        if f"{word}_ap" in result["scores"]
    }


def _cell(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def unjudged_masks(truth: Truth, masks: bool) -> Iterator[str]:
    """A sentence where a detector has masks, and they are not judged because not all test objects have regions."""
    objects = truth.table["annotations"]
    lacking = sum("segmentation" not in entry for entry in objects)
    if masks and lacking:
        yield f"masks are not judged: {lacking:,} of {len(objects):,} test objects, crowds included, have no region"


def _notes(outcome: Outcome) -> Iterator[str]:
    """The protocol in a line, what is counted, the images of each part, the origin of the weights, the distance to the baseline."""
    yield protocol_note(outcome.protocol, outcome.settings)
    crowds = sum(bool(entry["iscrowd"]) for entry in outcome.truth.table["annotations"])
    objects = len(outcome.truth.table["annotations"]) - crowds
    yield f"{len(outcome.classes):,} classes, {objects:,} test objects, {crowds:,} crowds that count neither way; AP is COCO's"
    yield from unjudged_masks(outcome.truth, bool(outcome.settings.get("masks")))
    yield from image_notes(outcome.images)
    yield from origin_notes((line.name, line.about) for line in outcome.rows)
    yield from baseline_notes(outcome.rows, "box_ap", "box AP")
