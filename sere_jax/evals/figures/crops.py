"""A batch as training sees it: the box of each crop on its source image, and the points of the overlaps (Fig. 3).

It shows wrong boxes, missing flips and shifted grids. Look at it first if you suspect the data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float
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


class Overlap(NamedTuple):
    """The points of the overlap of two crops, in crop coordinates of each: rows and columns [2, s]."""

    first: Float[np.ndarray, "2 s"]
    second: Float[np.ndarray, "2 s"]


def view_colour(number: int, first_local: int = 2) -> str:
    """Red and blue for global crops, a paler colour for each local crop."""
    return (_VIEW_1, _VIEW_2)[number] if number < first_local else _LOCALS[(number - first_local) % len(_LOCALS)]


def draw(batch: FirstBatch, about: Sequence[str], *, patch: int, points: int = 13, local_points: int = 6, sampling: Sampling) -> Figure:
    """Two rows an image: the source with boxes and the crops; below, the crops as the networks see them.

    Args:
      batch: rows of a batch with the images that they were made from.
      about: lines that say which batch it is.
      patch: side of a patch in pixels, for the centres of patches.
      points, local_points: on a side of the overlap of two global crops, and of a global and a local one.
      sampling: how points are laid on an overlap, see `overlap_points`.
    """
    views = batch.views
    count, first = views.boxes.shape[1], views.global_views.shape[1]
    names = ["source", *(f"global {n + 1}" if n < first else f"local {n + 1 - first}" for n in range(count))]
    figure, axes = canvas.grid(
        2 * len(batch.sources),
        count + 1,
        title="A batch of training: crops, their boxes and the overlap",
        about=about,
        note=" ".join(_legend(views)),
        headings=[names],
        group=2,
        pad=_PAD,
    )
    shared = overlaps(views, points, local_points, sampling)
    for i, source in enumerate(batch.sources):
        top, below = axes[2 * i], axes[2 * i + 1]
        canvas.row_label(top[0], batch.names[i], "replaces an unreadable image" if views.replaced[i] else "")
        _draw_source(top[0], source, views, i, shared[i].get((0, 1)))
        canvas.row_label(below[1], "network input")
        for n in range(count):
            _draw_crop(top[1 + n], views, i, n, shared[i], patch)
            canvas.picture(below[1 + n], batch.coloured[0][i, n] if n < first else batch.coloured[1][i, n - first], unit=True)
            if views.masks is not None and n < first:
                _hide(below[1 + n], np.asarray(views.masks[i, n]))
    return figure


def _legend(views: Views) -> Iterator[str]:
    first, count = views.global_views.shape[1], views.boxes.shape[1]
    if first > 1:
        yield "Green: points of the overlap of both global crops, the same source places in both; 1 and 2 mark the ends of the top row."
    if first > 1 and count > first:
        yield "Dots in local crops: points of the overlap with global 1 (red) and with global 2 (blue; in a red rim: of both)."
    yield "Purple: centres of patches."
    if views.masks is not None and np.any(views.masks):
        yield "Crossed out: patches hidden from the student."


def overlaps(views: Views, points: int, local_points: int, sampling: Sampling) -> list[dict[tuple[int, int], Overlap]]:
    """Of each image the overlaps of crops (i, j) that training compares: the two global ones, and each of them with each local one.

    Pairs that do not overlap are missing.
    """
    first, count = views.global_views.shape[1], views.boxes.shape[1]
    pairs = [(0, 1), *((i, j) for i in (0, 1) for j in range(first, count))] if first > 1 else []
    boxes, flips = jnp.asarray(views.boxes), jnp.asarray(views.flips)
    shared: list[dict[tuple[int, int], Overlap]] = [{} for _ in views.boxes]
    for i, j in pairs:
        size = points if j < first else local_points
        grids = overlap_points(boxes[:, i], flips[:, i], boxes[:, j], flips[:, j], size=size, sampling=sampling)
        sides = [np.stack([np.asarray(grid.y), np.asarray(grid.x)], axis=1) for grid in grids]
        for image in np.flatnonzero(np.asarray(grids[0].valid)):
            shared[image][i, j] = Overlap(sides[0][image], sides[1][image])
    return shared


def _hide(axis: Axes, mask: Bool[np.ndarray, "h w"]) -> None:
    """Grey out and cross out the patches that are hidden from the student."""
    h, w = mask.shape
    for row, column in np.argwhere(mask):
        corner = (column / w, row / h)
        axis.add_patch(Rectangle(corner, 1 / w, 1 / h, facecolor=_HIDDEN, edgecolor="#ffffff90", linewidth=0.4))
        axis.plot([corner[0], corner[0] + 1 / w], [corner[1] + 1 / h, corner[1]], color="#ffffff90", linewidth=0.4)


def _draw_source(axis: Axes, source: np.ndarray, views: Views, i: int, overlap: Overlap | None) -> None:
    axis.imshow(canvas.shown(source), interpolation="antialiased", alpha=0.75)
    first = views.global_views.shape[1]
    for n in reversed(range(views.boxes.shape[1])):
        left, top, width, height = views.boxes[i, n]
        line, colour = 1.8 if n < first else 1.0, view_colour(n, first)
        axis.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor=colour, linewidth=line, clip_on=False))
    if overlap is not None:
        left, top, width, height = views.boxes[i, 0]
        y, x = overlap.first
        x = 1 - x if views.flips[i, 0] else x
        _scatter(axis, top + height * y, left + width * x, _POINT)
        _ends(axis, top + height * y, left + width * x)
    axis.set_xlim(0, source.shape[1])
    axis.set_ylim(source.shape[0], 0)


def _draw_crop(axis: Axes, views: Views, i: int, n: int, shared: Mapping[tuple[int, int], Overlap], patch: int) -> None:
    first = views.global_views.shape[1]
    pixels = views.global_views[i, n] if n < first else views.local_views[i, n - first]
    canvas.picture(axis, np.asarray(pixels), unit=True)
    for spine in axis.spines.values():
        spine.set(visible=True, color=view_colour(n, first), linewidth=2)
    if n < first:
        y, x = ((np.arange(side // patch) + 0.5) / (side // patch) for side in pixels.shape[:2])
        axis.plot(*(g.ravel() for g in np.meshgrid(x, y)), "o", color=_PATCH, markersize=1.9, markeredgewidth=0)
        if (0, 1) in shared:
            y, x = shared[0, 1][n]
            _scatter(axis, y, x, _POINT)
            _ends(axis, y, x)
    for other in (0, 1):
        if n >= first and (other, n) in shared:
            y, x = shared[other, n].second
            # Where a local crop lies inside both global crops the points coincide: a red rim stays around the blue dot.
            _scatter(axis, y, x, view_colour(other), size=4.2 if other == 0 else 2.2)
    if views.flips[i, n]:
        canvas.corner(axis, "mirrored", right=True)
    axis.set_xlim(0, 1)
    axis.set_ylim(1, 0)


def _scatter(axis: Axes, y: np.ndarray, x: np.ndarray, colour: str, size: float = 2.8) -> None:
    """Draw dots with a dark rim, visible on any colour."""
    xs, ys = np.meshgrid(x, y)
    axis.plot(
        xs.ravel(), ys.ravel(), "o", color=colour, markersize=size, markeredgewidth=0.4, markeredgecolor="#101010", clip_on=False, zorder=4
    )


def _ends(axis: Axes, y: np.ndarray, x: np.ndarray) -> None:
    """The numbers 1 and 2 on the first and the last point of the top row."""
    for text, column in (("1", 0), ("2", -1)):
        badge = {"boxstyle": "circle,pad=0.12", "fc": _POINT, "ec": "none"}
        axis.text(x[column], y[0], text, color="black", fontsize=6, ha="center", va="center", bbox=badge)
