"""A batch as training sees it: every crop's box on its source image, and the overlap's points in both views (Fig. 3).

The first thing to look at when the data is suspected: a wrong box, a lost flip or a shifted grid shows at a glance.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from sere_jax.evals.figures import canvas
from sere_jax.ops.geometry import Sampling, overlap_points
from sere_jax.types import Views

_VIEW_1, _VIEW_2, _POINT, _PATCH = "#e8492f", "#2f9bff", "#35d04f", "#b05cff"
_LOCALS = ("#f2c230", "#26d0d9", "#ff7fc4", "#c8e04a", "#b39cff", "#ff9a4d", "#7fe0a8", "#d9d9d9")


def view_colour(number: int) -> str:
    """Global crops red and blue, local crops paler colours of their own."""
    return (_VIEW_1, _VIEW_2)[number] if number < 2 else _LOCALS[(number - 2) % len(_LOCALS)]


def draw(
    sources: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    names: Sequence[str],
    views: Views,
    augmented: tuple[Float[np.ndarray, "b v H W 3"], Float[np.ndarray, "b l S T 3"]] | None,
    *,
    patch: int,
    points: int = 13,
    sampling: Sampling = "endpoints",
) -> Figure:
    """Two rows an image: source with boxes and the crops; below, the same crops after colour augmentation (in [0, 1])."""
    count = views.boxes.shape[1]
    rows_each = 2 if augmented is not None else 1
    figure, axes = canvas.grid(
        len(sources) * rows_each, count + 1, title="A batch: crops, their boxes, and the overlap of the global crops"
    )
    canvas.subtitle(
        figure,
        "Green: overlap points, the same source places in both views; 1 and 2 mark the first and last of the top row. "
        "Purple: centres of patches. <> = mirrored.",
    )
    canvas.heading(axes[0, 0], "source")
    for n in range(count):
        canvas.heading(axes[0, 1 + n], f"global {n + 1}" if n < 2 else f"local {n - 1}")
    boxes, flips = jnp.asarray(views.boxes), jnp.asarray(views.flips)
    grids = overlap_points(boxes[:, 0], flips[:, 0], boxes[:, 1], flips[:, 1], size=points, sampling=sampling)
    for i, source in enumerate(sources):
        top = axes[i * rows_each]
        canvas.row_label(top[0], names[i] + (" (replaced)" if views.replaced[i] else ""))
        sides = [np.stack([np.asarray(a[i]) for a in (grid.y, grid.x)]) for grid in grids] if bool(grids[0].valid[i]) else []
        _draw_source(top[0], source, views, i, sides)
        for n in range(count):
            _draw_crop(top[1 + n], views, i, n, sides, patch)
        if augmented is not None:
            canvas.row_label(axes[i * rows_each + 1, 1], "after colour augmentation")
            for n in range(count):
                canvas.picture(axes[i * rows_each + 1, 1 + n], augmented[0][i, n] if n < 2 else augmented[1][i, n - 2], unit=True)
    return figure


def _draw_source(axis: Axes, source: np.ndarray, views: Views, i: int, sides: Sequence[np.ndarray]) -> None:
    axis.imshow(source, interpolation="antialiased", alpha=0.75)
    for n in reversed(range(views.boxes.shape[1])):
        left, top, width, height = views.boxes[i, n]
        line = 1.8 if n < 2 else 1.0
        axis.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor=view_colour(n), linewidth=line, clip_on=False))
    if sides:
        left, top, width, height = views.boxes[i, 0]
        y, x = sides[0]
        x = 1 - x if views.flips[i, 0] else x
        _scatter(axis, top + height * y, left + width * x)
    axis.set_xlim(0, source.shape[1])
    axis.set_ylim(source.shape[0], 0)


def _draw_crop(axis: Axes, views: Views, i: int, n: int, sides: Sequence[np.ndarray], patch: int) -> None:
    pixels = views.global_views[i, n] if n < 2 else views.local_views[i, n - 2]
    canvas.picture(axis, np.asarray(pixels), unit=True)
    for spine in axis.spines.values():
        spine.set(visible=True, color=view_colour(n), linewidth=2)
    if n < 2:
        side = np.arange(pixels.shape[0] // patch)
        centres = (side + 0.5) / len(side)
        axis.plot(*(g.ravel() for g in np.meshgrid(centres, centres)), "o", color=_PATCH, markersize=1.9, markeredgewidth=0)
        if sides:
            _scatter(axis, *sides[n])
    if views.flips[i, n]:
        axis.text(0.97, 0.03, "<>", transform=axis.transAxes, ha="right", color="white", fontsize=7, fontweight="bold")
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
