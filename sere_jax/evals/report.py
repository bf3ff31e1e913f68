"""How protocols talk: one table, one JSON file. Only process 0 speaks and writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table


def console() -> Console:
    """Standard output; a file or a pipe gets no colours and is not wrapped at 80 columns."""
    plain = Console()
    return plain if plain.is_terminal else Console(width=160, soft_wrap=True)


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
