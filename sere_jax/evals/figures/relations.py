"""How one patch relates to all others, in two views of an image, and where the two disagree (Fig. 5 of the TPAMI paper)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from sere_jax.evals.figures import canvas
from sere_jax.evals.frozen.analysis import Tokens
from sere_jax.evals.frozen.views import SeenPairs
from sere_jax.ops.geometry import Points, sample

_GROUPS_A_LINE = 3


class Rows(NamedTuple):
    """The relation of one source point of an image."""

    maps: tuple[Float[np.ndarray, "1 h w"], Float[np.ndarray, "1 h w"]]  # to every patch of each view; a map sums to 1
    difference: Float[np.ndarray, "1 s s"]  # |difference| over the aligned points of the overlap, in source orientation


class Case(NamedTuple):
    """What a group of three columns shows: an image, its two views, and the point that is asked about."""

    source: UInt8[np.ndarray, "H W 3"]
    views: Float[np.ndarray, "2 S S 3"]  # in [0, 1]
    boxes: Float[np.ndarray, "2 4"]
    flips: Bool[np.ndarray, " 2"]
    query: tuple[float, float]  # (y, x) in source pixels


def query_at(boxes: Float[np.ndarray, "2 4"], at: tuple[float, float]) -> tuple[float, float]:
    """The point (y, x) in source pixels at the fractions `at` = (down, right) of the overlap."""
    left, top, right, bottom = overlap_box(boxes)
    return top + at[0] * (bottom - top), left + at[1] * (right - left)


def relation_rows(seen: SeenPairs, case: Case, *, tokens: Tokens, temperature: float) -> Rows:
    """softmax_j(<f_query, f_j> / (sqrt(d) temperature)) with j over all patches of a view, and over the overlap's points.

    `seen` holds the case's image alone. Features between patches are sampled bilinearly with border padding, as in the analysis.
    """
    maps, aligned = [], []
    for side, (features, points) in enumerate(zip((seen.first, seen.second), seen.points, strict=True)):
        patches = jnp.asarray(features.patches if tokens == "post" else features.patches_prenorm)
        y, x = in_view(case.query, case.boxes[side], bool(case.flips[side]))
        asked = sample(patches, Points(jnp.full((1, 1), y), jnp.full((1, 1), x), points.valid), padding="border")[:, 0]
        sampled = sample(patches, points, padding="border")
        everywhere = patches.reshape(patches.shape[0], -1, patches.shape[-1])
        maps.append(np.asarray(_softmax_row(asked, everywhere, temperature)).reshape(patches.shape[:3]))
        aligned.append(np.asarray(_softmax_row(asked, sampled, temperature)))
    count = seen.points[0].y.shape[-1]
    return Rows((maps[0], maps[1]), np.abs(aligned[0] - aligned[1]).reshape(-1, count, count))


def _softmax_row(asked: jax.Array, others: jax.Array, temperature: float) -> jax.Array:
    logits = jnp.einsum("bd,bnd->bn", asked, others.astype(jnp.float32), precision="highest")
    return jax.nn.softmax(logits / (asked.shape[-1] ** 0.5 * temperature), axis=-1)


def in_view(point: tuple[float, float], box: Float[np.ndarray, " 4"], flip: bool) -> tuple[float, float]:
    """Crop coordinates (y, x) in [0, 1] of a source point (y, x) in pixels."""
    left, top, width, height = box.tolist()
    y, x = (point[0] - top) / height, (point[1] - left) / width
    return y, 1 - x if flip else x


def overlap_box(boxes: Float[np.ndarray, "2 4"]) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of the overlap in source pixels."""
    left, top = np.max(boxes[:, :2], axis=0)
    right, bottom = np.min(boxes[:, :2] + boxes[:, 2:], axis=0)
    return float(left), float(top), float(right), float(bottom)


def draw(cases: Sequence[Case], rows: Sequence[Sequence[Rows]], names: Sequence[str], *, temperature: float) -> Figure:
    """Three columns a case (view 1, view 2, difference); a row with the views and one row for each network.

    `rows[network][case]` holds arrays with b = 1.
    """
    lines = -(-len(cases) // _GROUPS_A_LINE)
    groups = -(-len(cases) // lines)  # lines of equal length
    height = 1 + len(names)
    widths = ([1.0, 1.0, 1.0, 0.12] * groups)[:-1]
    note = (
        f"Brighter = more related to the marked point (t = {temperature:g}); every panel stretched to its own range. "
        "Red: overlap of the views. Below the source: |difference| over the overlap, as the source lies; its sum L1 is between 0 and 2."
    )
    title = "Spatial self-relation of one point in two views"
    figure, axes = canvas.grid(lines * height, len(widths), title=title, note=note, widths=widths, group=height)
    for number, case in enumerate(cases):
        line, group = divmod(number, groups)
        block = axes[line * height : (line + 1) * height, group * 4 : group * 4 + 3]
        _draw_case(block, case, [network[number] for network in rows], names if group == 0 else [""] * len(names))
        canvas.row_label(block[0, 0], "views" if group == 0 else "")
    return figure


def _draw_case(block: np.ndarray, case: Case, rows: Sequence[Rows], names: Sequence[str]) -> None:
    left, top, right, bottom = overlap_box(case.boxes)
    for axis, title in zip(block[0], ("view 1", "view 2", "source"), strict=True):
        canvas.heading(axis, title)
    for side in (0, 1):
        canvas.picture(block[0, side], case.views[side], unit=True)
        _mark(block[0, side], case, side)
    _draw_source(block[0, 2], case)
    for i, (row, name) in enumerate(zip(rows, names, strict=True), 1):
        canvas.row_label(block[i, 0], name)
        for side in (0, 1):
            canvas.heat(block[i, side], row.maps[side][0])
            _mark(block[i, side], case, side)
        difference = row.difference[0]
        canvas.heat(block[i, 2], difference)
        place = ((case.query[1] - left) / (right - left), (case.query[0] - top) / (bottom - top))
        canvas.cross(block[i, 2], *place)
        canvas.corner(block[i, 2], f"L1 {difference.sum():.2f}")


def _mark(axis: Axes, case: Case, side: int) -> None:
    """The overlap and the asked point in one view."""
    left, top, right, bottom = overlap_box(case.boxes)
    corners = [in_view(point, case.boxes[side], bool(case.flips[side])) for point in ((top, left), (bottom, right))]
    (y0, x0), (y1, x1) = corners
    axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=canvas.OVERLAP, linewidth=1.6, clip_on=False))
    y, x = in_view(case.query, case.boxes[side], bool(case.flips[side]))
    canvas.cross(axis, x, y)


def _draw_source(axis: Axes, case: Case) -> None:
    canvas.picture(axis, case.source)
    for side in (0, 1):
        x, y, width, height = case.boxes[side]
        style = "-" if side == 0 else "--"
        axis.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor="white", linewidth=1.4, linestyle=style))
    left, top, right, bottom = overlap_box(case.boxes)
    axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=canvas.OVERLAP, linewidth=1.6))
    canvas.cross(axis, case.query[1], case.query[0])
    axis.set_xlim(0, case.source.shape[1])
    axis.set_ylim(case.source.shape[0], 0)
