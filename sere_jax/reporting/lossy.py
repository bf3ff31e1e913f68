"""Standard output and error whose errors do not end the program: a closed pipe, a closed terminal, a full disk. Imports nothing slow."""

from __future__ import annotations

import atexit
import contextlib
import errno
import io
import os
import sys

_GONE = (errno.EPIPE, errno.EIO, errno.EBADF)  # the pipe's reader has ended; the terminal was closed; the descriptor was never open


class LossyStream(io.TextIOBase):
    """A text stream that raises no error and drops text that cannot be written. For messages that matter less than the work.

    Once the reader has ended, the descriptor is redirected to /dev/null, so that later writes by other code and Python's flush at
    exit succeed. After other errors (a full disk) the next write is tried again. The first error is told on standard error.

    Example:
      >>> print("a line", file=LossyStream(open("/dev/full", "w")), flush=True)
    """

    def __init__(self, stream: io.TextIOBase) -> None:
        self._stream = stream
        self._told = False
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

    def end(self) -> None:
        """Flush for the last time. What the system does not accept now is dropped, or Python would report it when it closes the stream."""
        try:
            self._stream.flush()
        except OSError:
            self._redirect()
        except ValueError:  # it was closed
            return
        self.flush()

    def _lose(self, error: OSError) -> None:
        if error.errno in _GONE:
            self._redirect()
        if not self._told and self is not sys.stderr:
            self._told = True
            what = "is gone" if error.errno in _GONE else "cannot be written"
            with contextlib.suppress(OSError, ValueError, AttributeError):  # standard error may be gone too, or never was there
                print(f"standard output {what} ({error.strerror}); the program goes on without it", file=sys.stderr, flush=True)

    def _redirect(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


def hold_descriptors() -> None:
    """Open the null device where standard input, output or error is closed.

    Otherwise the next file or pipe that the program opens gets the free number, and what libraries print goes into it.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def replace_standard_streams() -> None:
    """Make `print` and the reports of errors go on when standard output or error cannot be written, for the rest of the program."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # it was closed when Python started; `hold_descriptors` has opened it
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  (it stays open)
        elif not isinstance(stream, LossyStream):
            lossy = LossyStream(stream)
            setattr(sys, name, lossy)
            if stream is getattr(sys, f"__{name}__"):
                atexit.register(lossy.end)
