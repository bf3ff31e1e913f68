"""Layout and style of all figures. pyplot is not used, because it keeps global state."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Float, Num
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from sere_jax.buckets import Location
from sere_jax.writing import replacing

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
_LEFT, _LINE, _GAP, _GROUP_GAP, _NARROWEST = 1.4, 0.135, 0.06, 0.2, 7.5  # inches
_TITLE, _HEADING = 0.34, 0.145  # inches from the top to the text below the title; of a line of a heading
PAD = 3.0  # points between a heading and the panel below it
_CHARACTERS_AN_INCH = 16  # of text of 8 points
_LABEL_WIDTH = 19  # characters of a line beside a row
BAR = 0.36  # width of a column for `colour_bar`, in panels

_STYLE: Any = {"font.family": "sans-serif", "font.size": 8.0, "text.color": INK, "axes.labelcolor": INK, "axes.titlesize": 8.5}


class Caption(NamedTuple):
    """The origin of a figure, for its header and labels."""

    lines: tuple[str, ...]  # above the panels: networks with their checkpoints, source and size of the images
    networks: tuple[tuple[str, str], ...]  # names, and details such as "teacher, step 60"
    images: tuple[str, ...]  # names

    def label(self, axis: Axes, image: int, network: int) -> None:
        """Label the row of one network among the rows of one image; the first of them names the image."""
        row_label(axis, *self.networks[network], image=self.images[image] if network == 0 else "")


def grid(
    rows: int,
    columns: int,
    *,
    title: str,
    note: str,
    about: Sequence[str] = (),
    headings: Sequence[Sequence[str]] = (),
    cell: float = 1.45,
    widths: Sequence[float] = (),
    group: int = 1,
    pad: float = PAD,
) -> tuple[Figure, np.ndarray]:
    """An empty figure of rows x columns panels without ticks. Returns (figure, axes[rows, columns]).

    The title, the lines of `about` and the note are above the panels; long lines are broken. The layout is in inches, so
    that distances do not depend on the size of the figure.

    Args:
      title: what the figure shows.
      note: how to read it.
      about: its origin, a line each.
      headings: names of the columns, "" for none; the n-th sequence stands above the n-th group of rows.
      cell: height of a panel in inches.
      widths: of the columns, in units of `cell`; by default 1 each.
      group: rows of a group; a wider gap follows each.
      pad: points between a heading and the panel below it.
    """
    wide = np.asarray(widths or [1.0] * columns) * cell
    lefts = _LEFT + np.concatenate([[0.0], np.cumsum(wide + _GAP)[:-1]])
    width = max(float(lefts[-1] + wide[-1]) + 0.15, _NARROWEST)
    characters = int((width - 0.3) * _CHARACTERS_AN_INCH)
    origin = [line for text in about for line in textwrap.wrap(text, characters, subsequent_indent="    ")]
    help_lines = textwrap.wrap(note, characters)
    names = [[wrap(text, int(w * 13)) for text, w in zip(line, wide, strict=True)] for line in headings]
    tops = _tops(rows, _TITLE + 0.06 + _LINE * len(origin + help_lines), cell, group, [_room(line, pad) for line in names])
    height = tops[-1] + cell + 0.15
    figure = Figure(figsize=(width, height), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    with matplotlib.rc_context(_STYLE):
        panels = [
            [figure.add_axes((x / width, 1 - (y + cell) / height, w / width, cell / height)) for x, w in zip(lefts, wide, strict=True)]
            for y in tops
        ]
        place = 0.15 / width
        figure.text(place, 1 - 0.12 / height, title, fontsize=11, fontweight="bold", va="top", color=INK)
        figure.text(place, 1 - _TITLE / height, "\n".join(origin), fontsize=8, va="top", color=INK)
        figure.text(place, 1 - (_TITLE + _LINE * len(origin)) / height, "\n".join(help_lines), fontsize=8, va="top", color=MUTED)
    axes = np.array(panels, dtype=object)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.patch.set_visible(False)
        for spine in axis.spines.values():
            spine.set_visible(False)
    for number, line in enumerate(names):
        for axis, text in zip(axes[number * group], line, strict=True):
            axis.set_title(text, fontsize=8.5, pad=pad, color=INK)
    return figure, axes


def _tops(rows: int, first: float, cell: float, group: int, rooms: Sequence[float]) -> list[float]:
    """The distance in inches of every row of panels from the top; `rooms` are the heights of the headings of each group."""
    tops, y = [], first
    for row in range(rows):
        number = row // group
        if row % group == 0:
            y += rooms[number] if number < len(rooms) else 0.0
            y += _GROUP_GAP - _GAP if row and group > 1 else 0.0
        tops.append(y)
        y += cell + _GAP
    return tops


def _room(headings: Sequence[str], pad: float) -> float:
    """The height in inches of a line of headings."""
    return pad / 72 + _HEADING * max((text.count("\n") + 1 for text in headings if text), default=0)


def row_label(axis: Axes, text: str, detail: str = "", image: str = "") -> None:
    """The name of a row, to the left of its first panel, with `detail` below it in grey. `image` is a name above both.

    Long names are broken into lines.
    """
    if image:
        axis.text(-0.07, 1.0, wrap(image, _LABEL_WIDTH), transform=axis.transAxes, ha="right", va="top", fontsize=7, fontweight="bold")
    name = wrap(text, _LABEL_WIDTH)
    axis.text(-0.07, 0.4, name, transform=axis.transAxes, ha="right", va="bottom" if detail else "center", fontsize=8, color=INK)
    if detail:
        below = wrap(detail, _LABEL_WIDTH)
        axis.text(-0.07, 0.37, below, transform=axis.transAxes, ha="right", va="top", fontsize=7, color=MUTED)


def corner(axis: Axes, text: str, *, right: bool = False) -> None:
    """Write a short white text in the lower left or lower right corner of a panel, readable on any colour."""
    outline = [withStroke(linewidth=2.2, foreground="#000000b0")]
    x, side = (0.96, "right") if right else (0.04, "left")
    axis.text(x, 0.05, text, transform=axis.transAxes, ha=side, color="white", fontsize=7, path_effects=outline)


def cross(axis: Axes, x: float, y: float) -> None:
    """Mark a point, visibly on any colour."""
    axis.plot(x, y, "+", color="black", markersize=9, markeredgewidth=2.6)
    axis.plot(x, y, "+", color="white", markersize=8, markeredgewidth=1.3)


def wrap(text: str, width: int) -> str:
    """Lines of at most `width` characters, broken between words. A longer word is broken after the marks of file names.

    A no-break space (U+00A0) belongs to its word, as between a number and its unit.

    >>> print(wrap("as the networks see it", 10))
    as the
    networks
    see it
    >>> print(wrap("n01983481_American_lobster.JPEG", 20))
    n01983481_American_
    lobster.JPEG
    """
    lines = [""]
    for word in re.split(r"[ \t\n]+", text.strip()):
        pieces = [word] if len(word) <= width else re.findall(r"[^@/_,.:-]*[@/_,.:-]|[^@/_,.:-]+", word)
        for number, piece in enumerate(part[i : i + width] for part in pieces for i in range(0, len(part), width)):
            space = " " if lines[-1] and number == 0 else ""
            if len(lines[-1]) + len(space) + len(piece) <= width:
                lines[-1] += space + piece
            else:
                lines.append(piece)
    return "\n".join(line for line in lines if line)


def shown(pixels: Num[np.ndarray, "*b H W c"]) -> Num[np.ndarray, "*b H W 3"]:
    """Three channels for display: one is shown as grey, two get zeros for blue, and of more the first three are used."""
    channels = pixels.shape[-1]
    if channels == 1:
        return np.repeat(pixels, 3, axis=-1)
    if channels == 2:
        return np.concatenate([pixels, np.zeros_like(pixels[..., :1])], axis=-1)
    return pixels[..., :3]


def picture(axis: Axes, image: Num[np.ndarray, "H W c"], *, unit: bool = False) -> None:
    """A photograph, uint8 or floats in [0, 1]. `unit`: the axes run over crop coordinates in [0, 1] instead of pixels."""
    image = shown(image)
    pixels = image if image.dtype == np.uint8 else np.clip(image, 0, 1)
    extent, aspect = ((0, 1, 1, 0), image.shape[0] / image.shape[1]) if unit else (None, 1.0)
    axis.imshow(pixels, interpolation="antialiased", extent=extent, aspect=aspect)


def heat(axis: Axes, values: Float[np.ndarray, "h w"], *, cmap: str = HEAT, limits: tuple[float, float] | None = None) -> None:
    """A map of numbers over crop coordinates, stretched to its own range unless `limits` say otherwise; no smoothing."""
    low, high = limits or (float(values.min()), float(values.max()))
    axis.imshow(values, cmap=cmap, vmin=low, vmax=high if high > low else low + 1, interpolation="nearest", extent=(0, 1, 1, 0))


def colour_bar(axis: Axes, limits: tuple[float, float], *, cmap: str = HEAT) -> None:
    """A bar with the colours of `limits`, with both numbers, in a narrow panel of its own."""
    bar = axis.inset_axes((0.0, 0.0, 0.22, 1.0))
    bar.imshow(np.linspace(1, 0, 64)[:, None], cmap=cmap, aspect="auto", extent=(0, 1, 0, 1), interpolation="bilinear")
    bar.set(xticks=[], yticks=[])
    for place, value, side in ((1.0, limits[1], "top"), (0.0, limits[0], "bottom")):
        axis.text(0.3, place, f"{value:.2g}", transform=axis.transAxes, ha="left", va=side, fontsize=7, color=INK)


def stretch(values: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Shift and scale to [0, 1]; a constant becomes 0."""
    values = values - values.min()
    return values / max(float(values.max()), 1e-12)


def save(figure: Figure, path: Location) -> Location:
    """Write a PNG without a time stamp, so that equal figures are equal files."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
    return path
