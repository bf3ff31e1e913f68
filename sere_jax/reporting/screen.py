"""Standard output that never ends a program: its reader has gone, its terminal was closed, its disk is full."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import TextIO, cast

import rich.console

_GONE = (errno.EPIPE, errno.EIO, errno.EBADF)  # `| head` has ended; the terminal was closed; nothing was ever there


class LossyStream(io.TextIOBase):
    """A text stream that drops what cannot be written, for output that matters less than the work it tells of.

    When the reader has gone for good, the descriptor is pointed at /dev/null: later writes by anybody, and Python's own flush at
    exit, then succeed. After another error (a full disk) each write is tried again.

    Example:
      >>> print("a line", file=LossyStream(open("/dev/full", "w")), flush=True)
    """

    def __init__(self, stream: io.TextIOBase) -> None:
        self._stream = stream
        self._terminal = stream.isatty()

    def write(self, text: str) -> int:
        """Write, or drop the text. Returns its length in any case."""
        try:
            self._stream.write(text)
        except OSError as error:
            self._lose(error)
        return len(text)

    def flush(self) -> None:
        """Flush, or keep what the system does not take for the next time."""
        try:
            self._stream.flush()
        except OSError as error:
            self._lose(error)

    def isatty(self) -> bool:
        """Whether the stream was a terminal at the start; a display that has begun is not changed in the middle."""
        return self._terminal

    def fileno(self) -> int:
        """The descriptor of the stream."""
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]  # rich asks which characters a terminal can show
        """The encoding of the stream."""
        return self._stream.encoding or "utf-8"  # an io.StringIO has None

    def _lose(self, error: OSError) -> None:
        if error.errno not in _GONE:
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


def stdout() -> rich.console.Console:
    """A console on standard output. A file or a pipe gets no colours and is not wrapped at 80 columns."""
    # Python has no stream at all where a program was started with its output closed.
    written_to = cast(io.TextIOBase, sys.stdout or io.StringIO())
    stream = cast(TextIO, LossyStream(written_to))
    console = rich.console.Console(file=stream)
    return console if console.is_terminal else rich.console.Console(file=stream, width=160, soft_wrap=True)


def can_redraw(console: rich.console.Console) -> bool:
    """Whether lines already written can be drawn again: on a terminal that is not a dumb one."""
    return console.is_terminal and not console.is_dumb_terminal
