"""The look that all figures share. Figures are made without pyplot: no global state, no display, nothing to close."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Float, Num
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

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

_STYLE = {"font.family": "sans-serif", "font.size": 8.0, "text.color": INK, "axes.labelcolor": INK, "axes.titlesize": 8.5}


def grid(rows: int, columns: int, *, title: str, cell: float = 1.45, widths: Sequence[float] | None = None) -> tuple[Figure, np.ndarray]:
    """An empty figure of rows x columns square panels without ticks (`cell` inches each), with a title above."""
    widths = list(widths or [1.0] * columns)
    with matplotlib.rc_context(_STYLE):
        width, height = sum(widths) * cell * 1.06 + 1.1, rows * cell * 1.12 + 0.75
        figure = Figure(figsize=(width, height), dpi=160, facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw={"width_ratios": widths})
        figure.subplots_adjust(
            left=0.95 / width, right=1 - 0.15 / width, top=1 - 0.65 / height, bottom=0.1 / height, wspace=0.05, hspace=0.09
        )
        figure.text(0.15 / width, 1 - 0.12 / height, title, fontsize=11, fontweight="bold", va="top", color=INK)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        for spine in axis.spines.values():
            spine.set_visible(False)
    return figure, axes


def subtitle(figure: Figure, text: str) -> None:
    """One line under the title that says how to read the figure."""
    width, height = figure.get_size_inches()
    figure.text(0.15 / width, 1 - 0.34 / height, text, fontsize=8, va="top", color=MUTED)


def heading(axis: Axes, text: str) -> None:
    """The name of a column, above its first panel."""
    axis.set_title(text, fontsize=8.5, pad=3, color=INK)


def row_label(axis: Axes, text: str) -> None:
    """The name of a row, to the left of its first panel, broken where it is long."""
    axis.set_ylabel(_wrap(text), rotation=0, ha="right", va="center", labelpad=6, fontsize=8, color=INK)


def _wrap(text: str, width: int = 15) -> str:
    lines = [""]
    for word in text.replace("/", "/ ").split():
        while len(word) > width:
            lines.append(word[:width])
            word = word[width:]
        lines = [*lines[:-1], f"{lines[-1]} {word}".strip()] if len(lines[-1]) + len(word) < width else [*lines, word]
    return "\n".join(line for line in lines if line)


def picture(axis: Axes, image: Num[np.ndarray, "H W c"], *, unit: bool = False) -> None:
    """A photograph, uint8 or floats in [0, 1]. `unit`: the axes then run over crop coordinates in [0, 1], not pixels."""
    extent = (0, 1, 1, 0) if unit else None
    axis.imshow(image if image.dtype == np.uint8 else np.clip(image, 0, 1), interpolation="antialiased", extent=extent)


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
