"""Detections as figures: boxes and masks on the images beside the truth, and precision over recall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from sere_jax.buckets import Location
from sere_jax.data.annotations.regions import decode_region
from sere_jax.data.sources.annotation import Size
from sere_jax.evals.detection.scores import RECALLS, Kind, Precision
from sere_jax.evals.figures import canvas

_SIDE = 480  # pixels of a panel's longer side
_OPACITY = 0.45  # of masks
_NAMED = 40  # classes whose names fit beside their bars
_KINDS: dict[Kind, str] = {"bbox": "boxes", "segm": "masks"}


class DrawnImages:
    """Keeps the first images with their truth and results, and draws them.

    Args:
      count: number of images.
      names: the class of each category_id.
      least_score: results below it are not drawn.
    """

    def __init__(self, count: int, names: Mapping[int, str], least_score: float = 0.5) -> None:
        self._count, self._names, self._least_score = count, names, least_score
        self._images: list[tuple[str, np.ndarray, Size, Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]]] = []

    def add(
        self,
        name: str,
        image: UInt8[np.ndarray, "H W c"],
        frame: Size,
        truth: Sequence[Mapping[str, Any]],
        results: Sequence[Mapping[str, Any]],
    ) -> None:
        """Keep an image if there is room. `truth` and `results` are entries of COCO's form, measured in `frame`."""
        if len(self._images) < self._count:
            step = max(1, -(-max(image.shape[:2]) // _SIDE))
            sure = [result for result in results if result["score"] >= self._least_score]
            self._images.append((name, canvas.shown(image[::step, ::step]), frame, truth, sure))

    def draw(self, path: Location, title: str, about: Sequence[str] = ()) -> None:
        """Write one figure, a row an image; nothing without images."""
        if not self._images:
            return
        note = f"Results with a score of at least {self._least_score:g}. Crowds are hatched; colours tell classes apart."
        headings = [["image", "truth", "detected"]]
        figure, axes = canvas.grid(len(self._images), 3, title=title, note=note, about=about, headings=headings, cell=2.4)
        for line, (name, image, frame, truth, results) in zip(axes, self._images, strict=True):
            canvas.row_label(line[0], name)
            canvas.picture(line[0], image)
            for axis, entries in zip(line[1:], (truth, results), strict=True):
                self._entries(axis, image, frame, entries)
        canvas.save(figure, path)

    def _entries(self, axis: Axes, image: np.ndarray, frame: Size, entries: Sequence[Mapping[str, Any]]) -> None:
        height, width = image.shape[:2]
        pixels = image.astype(np.float64) / 255
        rows, columns = (((np.arange(n) + 0.5) * whole / n).astype(int) for n, whole in ((height, frame[0]), (width, frame[1])))
        for entry in entries:
            if entry.get("segmentation"):
                mask = decode_region(entry["segmentation"], *frame)[np.ix_(rows, columns)]
                pixels[mask] = (1 - _OPACITY) * pixels[mask] + _OPACITY * np.array(matplotlib.colors.to_rgb(self._colour(entry)))
        canvas.picture(axis, pixels)
        axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
        for entry in sorted(entries, key=lambda entry: entry.get("score", 1.0)):
            left, top, across, down = (x * scale for x, scale in zip(entry["bbox"], (width / frame[1], height / frame[0]) * 2, strict=True))
            colour, crowd = self._colour(entry), bool(entry.get("iscrowd"))
            corner = (left - 0.5, top - 0.5)
            axis.add_patch(Rectangle(corner, across, down, fill=False, edgecolor=colour, linewidth=1.0, hatch="///" if crowd else None))
            text = self._names[entry["category_id"]] + (f" {entry['score']:.2f}" if "score" in entry else "")
            box = {"facecolor": colour, "edgecolor": "none", "pad": 0.6}
            axis.text(*corner, text.replace("$", r"\$"), fontsize=4.5, color="white", va="bottom", bbox=box, clip_on=True)

    def _colour(self, entry: Mapping[str, Any]) -> str:
        return canvas.COLOURS[entry["category_id"] % len(canvas.COLOURS)]


def draw_precision(path: Location, precisions: Mapping[Kind, Precision], classes: Sequence[str], title: str) -> Location:
    """Write a PNG: precision over recall at IoU .5, .75 and the mean of all ten thresholds, and the AP of each class.

    Boxes are solid, masks dashed. The curves are means over the classes with objects.
    """
    named = len(classes) <= _NAMED
    figure = Figure(figsize=(11, max(4.0, 0.16 * len(classes) + 1.2) if named else 4.6), dpi=150, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    with matplotlib.rc_context({"font.size": 8.0}):
        figure.suptitle(title.replace("$", r"\$"), fontsize=11, fontweight="bold", x=0.01, ha="left", color=canvas.INK)
        curves, bars = figure.subplots(1, 2, width_ratios=(1.25, 1))
        for style, (kind, one) in zip(("-", "--"), precisions.items(), strict=False):
            values = one.curves()
            lines = {"IoU .5": values[0], "IoU .75": values[5], "mean of IoU .5 to .95": values.mean(axis=0)}
            for colour, (label, line) in zip(canvas.COLOURS, lines.items(), strict=False):
                curves.plot(RECALLS, line, style, color=colour, label=f"{_KINDS[kind]}, {label}: {100 * line.mean():.1f}")
        curves.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision", title="mean of the classes, and its area in %")
        curves.legend(frameon=False, loc="best")
        _class_bars(bars, precisions, classes, named)
    return canvas.save(figure, path)


def _class_bars(axis: Axes, precisions: Mapping[Kind, Precision], classes: Sequence[str], named: bool) -> None:
    width = 0.8 / len(precisions)
    for number, (kind, one) in enumerate(precisions.items()):
        values = one.of_classes()[:, 0]
        values = values if named else np.sort(values[~np.isnan(values)])[::-1]
        places = np.arange(len(values)) + (number - (len(precisions) - 1) / 2) * width
        axis.barh(places, np.nan_to_num(values), height=width, color=canvas.COLOURS[1 + number], label=_KINDS[kind])
    axis.set(xlim=(0, 1), xlabel="AP", title="AP of each class")
    if named:
        axis.set_yticks(range(len(classes)), [name.replace("$", r"\$")[:24] for name in classes])
    else:
        axis.set(yticks=[], ylabel="classes, best first")
    axis.invert_yaxis()
    axis.legend(frameon=False, loc="lower right")
