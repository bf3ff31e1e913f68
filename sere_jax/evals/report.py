"""How protocols talk: a progress bar or lines, one table, one JSON file. Only process 0 speaks and writes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
from rich.console import Console
from rich.progress import track as rich_track
from rich.table import Table

Item = TypeVar("Item")
_PLAIN_SECONDS = 20.0  # without a terminal: a line at most so often


def console() -> Console:
    """Standard output; a file or a pipe gets no colours and is not wrapped at 80 columns."""
    plain = Console()
    return plain if plain.is_terminal else Console(width=160, soft_wrap=True)


def track(items: Iterable[Item], what: str, total: int) -> Iterator[Item]:
    """Pass `items` on and show how many of `total` are done: live on a terminal, a line now and then elsewhere."""
    screen = console()
    if jax.process_index() != 0:
        yield from items
    elif screen.is_terminal:
        yield from rich_track(items, what, total, console=screen, transient=True)
    else:
        yield from _lines(items, what, total, screen)


def _lines(items: Iterable[Item], what: str, total: int, screen: Console) -> Iterator[Item]:
    started = said = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - said > _PLAIN_SECONDS and done < total:
            left = (now - started) / done * (total - done)
            screen.print(f"{what}: {done}/{total}, about {left:.0f} s left", highlight=False)
            said = now


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> None:
    """Print one table (first column left, numbers right) with its notes below."""
    if jax.process_index() != 0:
        return
    table = Table(title=title, title_style="bold", title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    screen = console()
    screen.print(table)
    for note in notes:
        screen.print(note, highlight=False)


def write(path: Path, content: dict[str, Any]) -> None:
    """Write `content` as JSON, whole or not at all (a temporary file is renamed over the old one)."""
    if jax.process_index() != 0:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(path)
    console().print(f"written: {path}", highlight=False)
