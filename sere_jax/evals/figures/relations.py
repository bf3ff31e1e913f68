"""The relation of one patch to all others in two views of an image, and its difference (Fig. 5 of the TPAMI paper)."""

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

_CASES_A_LINE = 2
_BLOCK = (1.0, 1.0, canvas.BAR, 1.0, canvas.BAR, 0.06)  # widths: views 1 and 2 with a bar, difference with a bar, gap


class Rows(NamedTuple):
    """The relation of one source point of an image."""

    maps: tuple[Float[np.ndarray, "1 h w"], Float[np.ndarray, "1 h w"]]  # to every patch of each view; a map sums to 1
    difference: Float[np.ndarray, "1 s s"]  # |difference| over the points of the overlap, in the orientation of the source


class Case(NamedTuple):
    """What a group of columns shows: an image, its two views, and the query point."""

    name: str  # of the image
    source: UInt8[np.ndarray, "H W c"]
    views: Float[np.ndarray, "2 S S c"]  # in [0, 1]
    boxes: Float[np.ndarray, "2 4"]
    flips: Bool[np.ndarray, " 2"]
    query: tuple[float, float]  # (y, x) in source pixels


def query_at(boxes: Float[np.ndarray, "2 4"], at: tuple[float, float]) -> tuple[float, float]:
    """The point (y, x) in source pixels at the fractions `at` = (down, right) of the overlap."""
    left, top, right, bottom = overlap_box(boxes)
    return top + at[0] * (bottom - top), left + at[1] * (right - left)


def relation_rows(seen: SeenPairs, case: Case, *, tokens: Tokens, temperature: float) -> Rows:
    """softmax_j(<f_query, f_j> / (sqrt(d) temperature)), with j over all patches of a view and over the points of the overlap.

    `seen` holds the features of the case's image alone. Features between patches are sampled bilinearly with border padding, as
    in the analysis.
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


def draw(cases: Sequence[Case], rows: Sequence[Sequence[Rows]], caption: canvas.Caption, *, temperature: float) -> Figure:
    """Two views, their relation and its difference for each case: a row with the views, and a row for each network.

    `rows[network][case]` holds arrays with b = 1.
    """
    lines = -(-len(cases) // _CASES_A_LINE)
    columns = -(-len(cases) // lines)  # lines of equal length
    height = 1 + len(caption.networks)
    headings = [["view 1", "view 2", "", f"source: {case.name}", "", ""] for case in cases]
    headings += [[""] * 6] * (lines * columns - len(cases))
    figure, axes = canvas.grid(
        lines * height,
        len(_BLOCK) * columns - 1,
        title="Spatial self-relation of one point in two views",
        about=caption.lines,
        note=_note(temperature),
        headings=[[text for case in headings[k * columns : (k + 1) * columns] for text in case][:-1] for k in range(lines)],
        widths=(list(_BLOCK) * columns)[:-1],
        group=height,
    )
    for number, case in enumerate(cases):
        line, column = divmod(number, columns)
        block = axes[line * height : (line + 1) * height, column * len(_BLOCK) :][:, :5]
        _draw_views(block[0], case)
        for i, network in enumerate(rows):
            _draw_network(block[1 + i], case, network[number])
        if column == 0:
            canvas.row_label(block[0, 0], "views")
            for row, (name, detail) in zip(block[1:, 0], caption.networks, strict=True):
                canvas.row_label(row, name, detail)
    return figure


def _note(temperature: float) -> str:
    return (
        f"Left: how the marked point relates to every patch, softmax at t = {temperature:g} in units of the uniform relation (1: as to an "
        "average patch). Both views of a pair share the scale of the bar. Red: overlap of the views; white: view 1, dashed: view 2. "
        "Right: difference of the two relations over the points of the overlap, in the orientation of the source and in units of the "
        "uniform relation. L1 is the sum of the differences of probabilities, between 0 and 2."
    )


def _draw_views(row: np.ndarray, case: Case) -> None:
    for side in (0, 1):
        canvas.picture(row[side], case.views[side], unit=True)
        _mark(row[side], case, side)
    _draw_source(row[3], case)


def _draw_network(row: np.ndarray, case: Case, relation: Rows) -> None:
    """The relation in both views by one scale, and the difference; each with its bar."""
    scaled = [values[0] * values[0].size for values in relation.maps]
    limits = 0.0, max(float(values.max()) for values in scaled)
    for side in (0, 1):
        canvas.heat(row[side], scaled[side], limits=limits)
        _mark(row[side], case, side)
    canvas.colour_bar(row[2], limits)
    difference = relation.difference[0]
    limits = 0.0, float(difference.max()) * difference.size
    canvas.heat(row[3], difference * difference.size, limits=limits)
    canvas.colour_bar(row[4], limits)
    left, top, right, bottom = overlap_box(case.boxes)
    canvas.cross(row[3], (case.query[1] - left) / (right - left), (case.query[0] - top) / (bottom - top))
    canvas.corner(row[3], f"L1 {difference.sum():.2f}")


def _mark(axis: Axes, case: Case, side: int) -> None:
    """Draw the overlap and the query point in one view."""
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
