"""The figure of a classification: its confusion matrix, and the accuracy of each class."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from jaxtyping import Int
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sere_jax.buckets import Location
from sere_jax.evals.figures import canvas

_NAMED = 40  # classes whose names fit beside the matrix
_COUNTED = 15  # classes whose numbers fit into the matrix
_NAME = 24  # characters of a name


def draw(path: Location, counts: Int[np.ndarray, "c c"], classes: Sequence[str], title: str) -> Location:
    """Write a PNG: left the share of each class's images (row) by predicted class (column), right the accuracy of each class.

    Names are shown for up to 40 classes, numbers of images for up to 15. With more classes the accuracies are sorted.
    """
    images = counts.sum(axis=1)
    shares = counts / np.maximum(images, 1)[:, None]
    side = min(9.0, max(3.2, 0.2 * len(classes) + 1.5))
    figure = Figure(figsize=(2 * side + 1.5, side + 0.8), dpi=150, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    with matplotlib.rc_context({"font.size": 8.0}):
        figure.suptitle(title.replace("$", r"\$"), fontsize=11, fontweight="bold", x=0.01, ha="left", color=canvas.INK)
        matrix, bars = figure.subplots(1, 2, width_ratios=(1.25, 1))
        _matrix(matrix, shares, counts, classes)
        _bars(bars, shares.diagonal()[images > 0], [name for name, number in zip(classes, images, strict=True) if number])
    return canvas.save(figure, path)


def _name(text: str) -> str:
    readable = text.encode("utf-8", "backslashreplace").decode()  # names of folders may hold bytes that are not UTF-8
    short = readable if len(readable) <= _NAME else readable[: _NAME - 1] + "…"
    return short.replace("$", r"\$")


def _matrix(axis: Axes, shares: np.ndarray, counts: np.ndarray, classes: Sequence[str]) -> None:
    axis.imshow(shares, cmap=canvas.HEAT, vmin=0, vmax=1, interpolation="nearest")
    axis.set(xlabel="predicted class", ylabel="class", title="share of the images of a class")
    if len(classes) <= _NAMED:
        names = [_name(name) for name in classes]
        axis.set_xticks(range(len(names)), names, rotation=90)
        axis.set_yticks(range(len(names)), names)
    if len(classes) <= _COUNTED:
        for (down, right), number in np.ndenumerate(counts):
            colour = "black" if shares[down, right] > 0.6 else "white"
            axis.text(right, down, f"{number}", ha="center", va="center", color=colour, fontsize=7)


def _bars(axis: Axes, accuracy: np.ndarray, classes: Sequence[str]) -> None:
    axis.set(xlim=(0, 1), xlabel="accuracy", title=f"accuracy of each class, mean {accuracy.mean():.1%}")
    axis.axvline(float(accuracy.mean()), color=canvas.MUTED, linewidth=1, linestyle="--", zorder=0)
    if len(classes) <= _NAMED:
        axis.barh(range(len(classes)), accuracy, color=canvas.COLOURS[1])
        axis.set_yticks(range(len(classes)), [_name(name) for name in classes])
    else:
        axis.barh(range(len(classes)), np.sort(accuracy)[::-1], height=1.0, color=canvas.COLOURS[1])
        axis.set(ylabel="classes, best first")
    axis.invert_yaxis()
