"""Consoles on standard output."""

from __future__ import annotations

import io
import sys
from typing import TextIO, cast

import rich.console

from sere_jax.reporting.lossy import LossyStream


def stdout() -> rich.console.Console:
    """A console on standard output. A file or a pipe gets no colours and is not wrapped at 80 columns."""
    # sys.stdout is None if the program was started with its output closed.
    written_to = cast(io.TextIOBase, sys.stdout or io.StringIO())
    stream = cast(TextIO, written_to if isinstance(written_to, LossyStream) else LossyStream(written_to))
    console = rich.console.Console(file=stream)
    return console if console.is_terminal else rich.console.Console(file=stream, width=160, soft_wrap=True)


def can_redraw(console: rich.console.Console) -> bool:
    """Whether the console is a terminal that can redraw lines."""
    return console.is_terminal and not console.is_dumb_terminal
