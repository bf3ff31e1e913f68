"""Files of a classification's outcome: confusion matrix and accuracies as CSV and as a figure, predictions, TensorBoard scalars."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from sere_jax.buckets import Location
from sere_jax.evals.figures import confusion as figure
from sere_jax.reporting import table
from sere_jax.reporting.tensorboard import EventFile
from sere_jax.writing import replacing


def class_rows(counts: Int[np.ndarray, "c c"], classes: Sequence[str]) -> Iterator[list[Any]]:
    """A heading, then for each class: its images, the correct ones, their share, and the class that it is most often taken for.

    >>> list(class_rows(np.array([[2, 0], [1, 3]]), ["cat", "dog"]))[2]
    ['dog', 4, 3, 0.75, 'cat', 1]
    """
    yield ["class", "images", "correct", "accuracy", "most often taken for", "images of these"]
    for number, (name, line) in enumerate(zip(classes, counts, strict=True)):
        images, correct = int(line.sum()), int(line[number])
        others = np.where(np.arange(len(line)) == number, 0, line)
        most = int(others.max())
        yield [name, images, correct, round(correct / images, 6) if images else "", classes[int(others.argmax())] if most else "", most]


def write_confusion(workdir: Location, stem: str, counts: Int[np.ndarray, "c c"], classes: Sequence[str], title: str) -> None:
    """Write eval/STEM-classes.csv, eval/STEM-confusion.csv and figures/STEM.png, from images by class (row) and prediction (column)."""
    write_csv(workdir / "eval" / f"{stem}-classes.csv", list(class_rows(counts, classes)))
    write_csv(workdir / "eval" / f"{stem}-confusion.csv", confusion_lines(counts, classes))
    path = workdir / "figures" / f"{stem}.png"
    figure.draw(path, counts, classes, title)
    table.say(f"written: {path}")


def confusion_lines(counts: Int[np.ndarray, "c c"], classes: Sequence[str]) -> list[list[Any]]:
    """A confusion matrix with the names of the classes above and beside it."""
    return [["", *classes], *([name, *values] for name, values in zip(classes, counts.tolist(), strict=True))]


def write_arrays(path: Location, arrays: Mapping[str, Any]) -> None:
    """Write arrays to a compressed npz file."""
    entries: dict[str, Any] = {name: np.asarray(values) for name, values in arrays.items()}
    with replacing(path) as temporary:
        np.savez_compressed(temporary, **entries)
    table.say(f"written: {path}")


def write_scalars(directory: Location, step: int, values: Mapping[str, float]) -> None:
    """Add the values of one step to the TensorBoard run in `directory`."""
    events = EventFile(directory)
    events.write(step, values)
    events.close()


def write_csv(path: Location, lines: Sequence[Sequence[Any]]) -> None:
    """Write lines of cells as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    with replacing(path) as temporary:  # names of folders may hold bytes that are not UTF-8
        temporary.write_text(text.getvalue(), encoding="utf-8", errors="backslashreplace")
