"""Output of the protocols: lines, a table, a JSON file. Only process 0 prints and writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import jax
from rich.table import Table

from sere_jax.buckets import Location
from sere_jax.reporting import screen
from sere_jax.writing import replacing

_NAME = 12  # smallest width of a first column whose names are broken, in characters


def say(text: str) -> None:
    """Print one line, unwrapped, on process 0."""
    if jax.process_index() == 0:
        screen.stdout().print(text, highlight=False, markup=False)


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> None:
    """Print one table (first column left, numbers right) with its notes below."""
    if jax.process_index() != 0:
        return
    console = screen.stdout()
    console.print(_table(title, columns, rows, console.width))
    for note in notes:
        console.print(note, highlight=False, markup=False)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Table:
    """A table of at most `width` characters. rich alone would truncate words and numbers.

    If it does not fit, words of a cell are put on separate lines; next, the padding is removed. The names in the first
    column get the remaining width and are broken into lines.
    """
    names, *values = zip(columns, *rows, strict=True)
    whole = [max(len(line) for cell in column for line in cell.split("\n")) for column in values]
    words = [max(len(word) for cell in column for word in cell.split() or [""]) for column in values]
    wanted = min(_NAME, max(map(len, names)))
    for padding, widths in ((1, whole), (1, words), (0, words)):
        if sum(widths) + wanted + len(columns) * (1 + 2 * padding) + 1 <= width:
            break
    table = Table(title=title, title_style="bold", title_justify="left", padding=(0, padding))
    table.add_column(columns[0], overflow="fold")
    for heading, room in zip(columns[1:], widths, strict=True):
        table.add_column(heading, justify="right", width=room)
    for row in rows:
        table.add_row(*row)
    return table


def write(path: Location, content: dict[str, Any]) -> None:
    """Write `content` as JSON, in process 0."""
    if jax.process_index() != 0:
        return
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")
    say(f"written: {path}")
