"""Standard output whose errors do not end the program: a closed pipe, a closed terminal, a full disk."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from typing import TextIO, cast

import rich.console

_GONE = (errno.EPIPE, errno.EIO, errno.EBADF)  # the pipe's reader has ended; the terminal was closed; the descriptor was never open


class LossyStream(io.TextIOBase):
    """A text stream that raises no error and drops text that cannot be written. For messages that matter less than the work.

    Once the reader has ended, the descriptor is redirected to /dev/null, so that later writes by other code and Python's flush at
    exit succeed. After other errors (a full disk) the next write is tried again.

    Example:
      >>> print("a line", file=LossyStream(open("/dev/full", "w")), flush=True)
    """

    def __init__(self, stream: io.TextIOBase) -> None:
        self._stream = stream
        self._terminal = stream.isatty()

    def write(self, text: str) -> int:
        """Write the text or drop it; return its length in both cases. Characters that the encoding lacks are written as escapes."""
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            return self.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding)) and len(text)
        except OSError as error:
            self._lose(error)
        return len(text)

    def flush(self) -> None:
        """Flush. Text that the system does not accept now is kept for the next flush."""
        try:
            self._stream.flush()
        except OSError as error:
            self._lose(error)

    def isatty(self) -> bool:
        """Whether the stream was a terminal when it was wrapped. It stays so after an error, so that a display does not change."""
        return self._terminal

    def fileno(self) -> int:
        """The descriptor of the stream."""
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]  # rich chooses its characters by it
        """The encoding of the stream."""
        return self._stream.encoding or "utf-8"  # an io.StringIO has None

    def _lose(self, error: OSError) -> None:
        if error.errno not in _GONE:
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
        with contextlib.suppress(OSError, ValueError, AttributeError):  # standard error may be gone too, or never was there
            print(f"standard output is gone ({error.strerror}); the program goes on without it", file=sys.stderr, flush=True)


def stdout() -> rich.console.Console:
    """A console on standard output. A file or a pipe gets no colours and is not wrapped at 80 columns."""
    # sys.stdout is None if the program was started with its output closed.
    written_to = cast(io.TextIOBase, sys.stdout or io.StringIO())
    stream = cast(TextIO, LossyStream(written_to))
    console = rich.console.Console(file=stream)
    return console if console.is_terminal else rich.console.Console(file=stream, width=160, soft_wrap=True)


def can_redraw(console: rich.console.Console) -> bool:
    """Whether the console is a terminal that can redraw lines."""
    return console.is_terminal and not console.is_dumb_terminal
