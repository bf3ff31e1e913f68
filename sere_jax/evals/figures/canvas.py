"""The look that all figures share. Figures are made without pyplot: no global state, no display, nothing to close."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float, Num
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

INK = "#22262b"
MUTED = "#79818a"
# Distinct in hue and in lightness (after Okabe and Ito's palette for colour-blind readers).
COLOURS = (
    "#e8492f",
    "#1f77d0",
    "#12a37a",
    "#c44fa0",
    "#e39b0b",
    "#5d4fcf",
    "#26b5c9",
    "#8a6b3f",
    "#7b8b2e",
    "#d65f7f",
    "#4c5a67",
    "#b58900",
)
OVERLAP = "#e8252a"
HEAT = "magma"
_LEFT, _TOP, _LINE, _GAP, _GROUP_GAP, _NARROWEST = 1.4, 0.54, 0.135, 0.06, 0.2, 7.5  # inches
PAD = 3.0  # points between a heading and the panel below it
_CHARACTERS_AN_INCH = 16  # of the note, 8 points

_STYLE: Any = {"font.family": "sans-serif", "font.size": 8.0, "text.color": INK, "axes.labelcolor": INK, "axes.titlesize": 8.5}


def grid(
    rows: int, columns: int, *, title: str, note: str, cell: float = 1.45, widths: Sequence[float] = (), group: int = 1, pad: float = PAD
) -> tuple[Figure, np.ndarray]:
    """An empty figure of rows x columns panels without ticks, `cell` inches high and `widths` x as wide.

    Above them stand the title and a `note` that says how to read the figure, of as many lines as it needs. A wider gap follows
    every `group` rows, and headings stand `pad` points above the panels (see `heading`). All is laid out in inches, so that panels
    touch the same way at any size.
    """
    wide = np.asarray(widths or [1.0] * columns) * cell
    lefts = _LEFT + np.concatenate([[0.0], np.cumsum(wide + _GAP)[:-1]])
    width = max(float(lefts[-1] + wide[-1]) + 0.15, _NARROWEST)
    lines = textwrap.wrap(note, int((width - 0.3) * _CHARACTERS_AN_INCH))
    first = _TOP + (pad - PAD) / 72 + _LINE * len(lines)
    tops = first + np.arange(rows) * (cell + _GAP) + (np.arange(rows) // group) * (_GROUP_GAP - _GAP) * (group > 1)
    height = float(tops[-1]) + cell + 0.15
    figure = Figure(figsize=(width, height), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    with matplotlib.rc_context(_STYLE):
        panels = [
            [figure.add_axes((x / width, 1 - (y + cell) / height, w / width, cell / height)) for x, w in zip(lefts, wide, strict=True)]
            for y in tops
        ]
        figure.text(0.15 / width, 1 - 0.12 / height, title, fontsize=11, fontweight="bold", va="top", color=INK)
        figure.text(0.15 / width, 1 - 0.34 / height, "\n".join(lines), fontsize=8, va="top", color=MUTED)
    axes = np.array(panels, dtype=object)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.patch.set_visible(False)
        for spine in axis.spines.values():
            spine.set_visible(False)
    return figure, axes


def heading(axis: Axes, text: str, pad: float = PAD) -> None:
    """The name of a column, `pad` points above its first panel."""
    axis.set_title(text, fontsize=8.5, pad=pad, color=INK)


def row_label(axis: Axes, text: str, detail: str = "") -> None:
    """The name of a row, to the left of its first panel and broken where it is long; `detail` below it in grey."""
    name = _wrap(text)
    axis.text(-0.07, 0.5, name, transform=axis.transAxes, ha="right", va="bottom" if detail else "center", fontsize=8, color=INK)
    if detail:
        axis.text(-0.07, 0.47, _wrap(detail), transform=axis.transAxes, ha="right", va="top", fontsize=7, color=MUTED)


def corner(axis: Axes, text: str, *, right: bool = False) -> None:
    """A small white remark in the lower left of a panel, or in the lower right, readable on any colour."""
    outline = [withStroke(linewidth=2.2, foreground="#000000b0")]
    x, side = (0.96, "right") if right else (0.04, "left")
    axis.text(x, 0.05, text, transform=axis.transAxes, ha=side, color="white", fontsize=7, path_effects=outline)


def cross(axis: Axes, x: float, y: float) -> None:
    """Mark a point, visibly on any colour."""
    axis.plot(x, y, "+", color="black", markersize=9, markeredgewidth=2.6)
    axis.plot(x, y, "+", color="white", markersize=8, markeredgewidth=1.3)


def _wrap(text: str, width: int = 17) -> str:
    """Lines of at most `width` characters, broken at spaces, else after the marks that file names are made of."""
    lines = [""]
    for word in re.findall(r"[^ @/_,.:-]*[ @/_,.:-]?", text):
        pieces = [word[i : i + width] for i in range(0, len(word), width)]
        for piece in pieces:
            lines = [*lines[:-1], lines[-1] + piece] if len(lines[-1]) + len(piece.rstrip()) <= width else [*lines, piece]
    return "\n".join(line.strip() for line in lines if line.strip())


def picture(axis: Axes, image: Num[np.ndarray, "H W c"], *, unit: bool = False) -> None:
    """A photograph, uint8 or floats in [0, 1]. `unit`: the axes then run over crop coordinates in [0, 1], not pixels."""
    shown = image if image.dtype == np.uint8 else np.clip(image, 0, 1)
    extent, aspect = ((0, 1, 1, 0), image.shape[0] / image.shape[1]) if unit else (None, 1.0)
    axis.imshow(shown, interpolation="antialiased", extent=extent, aspect=aspect)


def heat(axis: Axes, values: Float[np.ndarray, "h w"], *, cmap: str = HEAT, limits: tuple[float, float] | None = None) -> None:
    """A map of numbers over crop coordinates, stretched to its own range unless `limits` say otherwise; no smoothing."""
    low, high = limits or (float(values.min()), float(values.max()))
    axis.imshow(values, cmap=cmap, vmin=low, vmax=high if high > low else low + 1, interpolation="nearest", extent=(0, 1, 1, 0))


def stretch(values: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Shift and scale to [0, 1]; a constant becomes 0."""
    values = values - values.min()
    return values / max(float(values.max()), 1e-12)


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG (no time stamp in it: equal figures are equal files)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", metadata={"Software": None})
    return path
