"""Curves as SVG, drawn without a library: the text of a picture that is part of a page."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

# Dark enough for a contrast of 4.5 on white; the dashes tell lines apart without colours.
STYLES = (("#0b5cad", ""), ("#b3261e", "7 3"), ("#0b6b4f", "2 3"), ("#7a2a86", "9 3 2 3"), ("#7a5200", "4 2"), ("#3d4450", "12 4"))
_WIDTH, _HEIGHT = 420, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 12, 30
_POINTS = 300  # most points of a line


class Line(NamedTuple):
    """One curve."""

    name: str
    steps: Sequence[int]
    values: Sequence[float]
    style: int = 0  # as `style` takes it
    reference: float | None = None  # the value when nothing is learned, a dotted horizontal line


def style(number: int) -> tuple[str, str]:
    """Colour and dashes of a line. After six lines the colours come again with other dashes, so that 36 lines differ.

    >>> style(0) == STYLES[0], style(6)[0] == style(0)[0], len({style(number) for number in range(36)})
    (True, True, 36)
    """
    turn, place = divmod(number, len(STYLES))
    return STYLES[place][0], STYLES[(place + turn) % len(STYLES)][1]


def draw(identifier: str, title: str, lines: Sequence[Line]) -> str:
    """An SVG of curves over steps, with a dotted line at each reference. References that differ have the colours of their curves.

    It has a title and a description with the first and last value of every curve, for readers who do not see it. `identifier` is unique
    in the page.
    """
    references = {line.reference: line for line in lines if line.reference is not None}
    low, high = _limits([value for line in lines for value in line.values] + list(references))
    last = max(max(line.steps) for line in lines)
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-labelledby="{identifier}-t {identifier}-d">',
        f'<title id="{identifier}-t">{html.escape(title)} by step</title>',
        f'<desc id="{identifier}-d">{html.escape(" ".join(_described(lines)))}</desc>',
        *_axes(low, high, last),
    ]
    for reference, line in references.items():
        y, colour = _y(reference, low, high), f' style="stroke: {style(line.style)[0]}"' if len(references) > 1 else ""
        parts.append(f'<line class="reference" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"{colour}/>')
    for line in lines:
        colour, dash = style(line.style)
        points = " ".join(f"{_x(step, last)},{_y(value, low, high)}" for step, value in _thinned(line))
        parts.append(f'<polyline points="{points}" stroke="{colour}" stroke-dasharray="{dash}"/>')
        if len(line.steps) == 1:
            parts.append(f'<circle cx="{_x(line.steps[0], last)}" cy="{_y(line.values[0], low, high)}" r="3" fill="{colour}"/>')
    return "".join([*parts, "</svg>"])


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers between two, as many as fit into `most`.

    >>> ticks(0.0, 1.1), ticks(3.0, 3.0), ticks(0.0, 1700.0, 4)
    ([0.0, 0.5, 1.0], [3.0], [0.0, 500.0, 1000.0, 1500.0])
    """
    if high <= low:
        return [low]
    power = 10.0 ** (math.floor(math.log10(high - low)) - 1)
    for step in (power * factor for factor in (1, 2, 5, 10, 20, 50, 100)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            break
    return [round(number * step, 12) for number in range(first, last + 1)] or [low]


def _limits(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 0.5
    return low - margin, high + margin


def _thinned(line: Line) -> list[tuple[int, float]]:
    """At most `_POINTS` points: the mean of each group of neighbours, at their last step."""
    if len(line.steps) <= _POINTS:
        return list(zip(line.steps, line.values, strict=True))
    groups = np.array_split(np.arange(len(line.steps)), _POINTS)
    values = np.asarray(line.values)
    return [(line.steps[group[-1]], float(values[group].mean())) for group in groups]


def _x(step: int, last: int) -> str:
    return f"{_LEFT + (_WIDTH - _LEFT - _RIGHT) * step / max(last, 1):.1f}"


def _y(value: float, low: float, high: float) -> str:
    return f"{_TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - value) / (high - low):.1f}"


def _axes(low: float, high: float, last: int) -> Iterator[str]:
    for value in ticks(low, high):
        y = _y(value, low, high)
        yield f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>'
        yield f'<text x="{_LEFT - 6}" y="{y}" text-anchor="end" dominant-baseline="middle">{value:g}</text>'
    yield f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 1}" text-anchor="end">step</text>'
    for value in ticks(0.0, float(last), 4):
        yield f'<text x="{_x(int(value), last)}" y="{_HEIGHT - 14}" text-anchor="middle">{value:,.0f}</text>'


def _described(lines: Sequence[Line]) -> Iterator[str]:
    for line in lines:
        learned = "" if line.reference is None else f"; {line.reference:.4g} when nothing is learned"
        yield f"{line.name}: {line.values[0]:.4g} at step {line.steps[0]:,}, {line.values[-1]:.4g} at step {line.steps[-1]:,}{learned}."
