"""A batch as training sees it: every crop's box on its source image, and the overlap's points in both views (Fig. 3).

The first thing to look at when the data is suspected: a wrong box, a lost flip or a shifted grid shows at a glance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from sere_jax.evals.figures import canvas
from sere_jax.evals.figures.first_batch import FirstBatch
from sere_jax.ops.geometry import Sampling, overlap_points
from sere_jax.types import Views

_VIEW_1, _VIEW_2, _POINT, _PATCH = "#e8492f", "#2f9bff", "#35d04f", "#b05cff"
_PAD = 8.0  # points below the headings: the marks of points on the edge of a crop stand out of it
_HIDDEN = "#5a6068c8"
_LOCALS = ("#f2c230", "#26d0d9", "#ff7fc4", "#c8e04a", "#b39cff", "#ff9a4d", "#7fe0a8", "#d9d9d9")


def view_colour(number: int, first_local: int = 2) -> str:
    """Global crops red and blue, local crops paler colours of their own."""
    return (_VIEW_1, _VIEW_2)[number] if number < first_local else _LOCALS[(number - first_local) % len(_LOCALS)]


def draw(batch: FirstBatch, origin: str, *, patch: int, points: int = 13, sampling: Sampling = "endpoints") -> Figure:
    """Two rows an image: source with boxes and the crops; below, the crops as the networks see them. `origin` says which batch it is."""
    views = batch.views
    count, first = views.boxes.shape[1], views.global_views.shape[1]
    title, note = "A batch of training: crops, their boxes and the overlap", " ".join([origin, *_legend(views)])
    figure, axes = canvas.grid(2 * len(batch.sources), count + 1, title=title, note=note, group=2, pad=_PAD)
    canvas.heading(axes[0, 0], "source", _PAD)
    for n in range(count):
        canvas.heading(axes[0, 1 + n], f"global {n + 1}" if n < first else f"local {n + 1 - first}", _PAD)
    overlaps = _overlaps(views, points, sampling)
    for i, source in enumerate(batch.sources):
        top, below = axes[2 * i], axes[2 * i + 1]
        canvas.row_label(top[0], batch.names[i] + (" (replaced)" if views.replaced[i] else ""))
        _draw_source(top[0], source, views, i, overlaps[i])
        canvas.row_label(below[1], "as the networks see it")
        for n in range(count):
            _draw_crop(top[1 + n], views, i, n, overlaps[i], patch)
            canvas.picture(below[1 + n], batch.coloured[0][i, n] if n < first else batch.coloured[1][i, n - first], unit=True)
            if views.masks is not None and n < first:
                _hide(below[1 + n], np.asarray(views.masks[i, n]))
    return figure


def _legend(views: Views) -> Iterator[str]:
    if views.global_views.shape[1] > 1:
        yield "Green: overlap points, the same source places in both views; 1 and 2 mark the first and last of the top row."
    yield "Purple: centres of patches."
    if views.masks is not None and np.any(views.masks):
        yield "Crossed out: patches hidden from the student."


def _overlaps(views: Views, points: int, sampling: Sampling) -> list[list[np.ndarray]]:
    """Of each image the rows and columns [2, s] of the overlap's points in each of the two global crops; [] where there is none."""
    if views.global_views.shape[1] < 2:
        return [[] for _ in views.boxes]
    boxes, flips = jnp.asarray(views.boxes), jnp.asarray(views.flips)
    grids = overlap_points(boxes[:, 0], flips[:, 0], boxes[:, 1], flips[:, 1], size=points, sampling=sampling)
    sides = [np.stack([np.asarray(grid.y), np.asarray(grid.x)], axis=1) for grid in grids]
    return [[side[i] for side in sides] if valid else [] for i, valid in enumerate(np.asarray(grids[0].valid))]


def _hide(axis: Axes, mask: Bool[np.ndarray, "h w"]) -> None:
    """Grey out and cross out the hidden patches."""
    h, w = mask.shape
    for row, column in np.argwhere(mask):
        corner = (column / w, row / h)
        axis.add_patch(Rectangle(corner, 1 / w, 1 / h, facecolor=_HIDDEN, edgecolor="#ffffff90", linewidth=0.4))
        axis.plot([corner[0], corner[0] + 1 / w], [corner[1] + 1 / h, corner[1]], color="#ffffff90", linewidth=0.4)


def _draw_source(axis: Axes, source: np.ndarray, views: Views, i: int, sides: Sequence[np.ndarray]) -> None:
    axis.imshow(source, interpolation="antialiased", alpha=0.75)
    first = views.global_views.shape[1]
    for n in reversed(range(views.boxes.shape[1])):
        left, top, width, height = views.boxes[i, n]
        line, colour = 1.8 if n < first else 1.0, view_colour(n, first)
        axis.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor=colour, linewidth=line, clip_on=False))
    if sides:
        left, top, width, height = views.boxes[i, 0]
        y, x = sides[0]
        x = 1 - x if views.flips[i, 0] else x
        _scatter(axis, top + height * y, left + width * x)
    axis.set_xlim(0, source.shape[1])
    axis.set_ylim(source.shape[0], 0)


def _draw_crop(axis: Axes, views: Views, i: int, n: int, sides: Sequence[np.ndarray], patch: int) -> None:
    first = views.global_views.shape[1]
    pixels = views.global_views[i, n] if n < first else views.local_views[i, n - first]
    canvas.picture(axis, np.asarray(pixels), unit=True)
    for spine in axis.spines.values():
        spine.set(visible=True, color=view_colour(n, first), linewidth=2)
    if n < first:
        y, x = ((np.arange(side // patch) + 0.5) / (side // patch) for side in pixels.shape[:2])
        axis.plot(*(g.ravel() for g in np.meshgrid(x, y)), "o", color=_PATCH, markersize=1.9, markeredgewidth=0)
        if sides:
            _scatter(axis, *sides[n])
    if views.flips[i, n]:
        canvas.corner(axis, "mirrored", right=True)
    axis.set_xlim(0, 1)
    axis.set_ylim(1, 0)


def _scatter(axis: Axes, y: np.ndarray, x: np.ndarray) -> None:
    xs, ys = np.meshgrid(x, y)
    axis.plot(xs.ravel(), ys.ravel(), "o", color=_POINT, markersize=2.1, markeredgewidth=0, clip_on=False)
    for text, column in (("1", 0), ("2", -1)):
        axis.text(
            x[column],
            y[0],
            text,
            color="black",
            fontsize=6,
            ha="center",
            va="center",
            bbox={"boxstyle": "circle,pad=0.12", "fc": _POINT, "ec": "none"},
        )
