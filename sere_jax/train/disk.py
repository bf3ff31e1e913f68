"""A disk that fails under a run: why, in a few words, and whether the directory is still the one that the run began with."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator

from etils import epath

_CODE = re.compile(r"os_error_code='(\d+)'")
# Of TensorStore's messages.
_ANNOTATIONS = re.compile(r"\s*\[(tensorstore_spec|source locations|os_error_code)=.*", re.DOTALL)
_LEAF = re.compile(r'"([^"/]+)/(?:\.zarray|[\d.]+)"')
_FILE = re.compile(r'"((?:/|[a-z]+://)[^"]*)"')
_DETAIL = re.compile(r"; at |, but received")


def cause(error: Exception) -> str:
    """`No space left on device` where the system says why, else the error in one line.

    TensorStore's messages hold its whole configuration, with the system's code somewhere in them.

    Example:
      >>> cause(ValueError("RESOURCE_EXHAUSTED: Error writing ... [os_error_code='28']"))
      'No space left on device'
    """
    if match := _CODE.search(str(error)):
        return os.strerror(int(match[1]))
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return brief(error)


def brief(error: Exception) -> str:
    """An error in one line. Of TensorStore's messages: the leaf, the file and the reason, without its settings in JSON.

    Example:
      >>> brief(ValueError('Error reading "a.b/.zarray" in database at local file "/s/": Error reading local file "/s/d": too short; at 9'))
      'leaf a/b, file /s/d: too short'
      >>> brief(KeyError("a"))
      "KeyError: 'a'"
    """
    text = " ".join(_ANNOTATIONS.sub("", str(error)).split())
    if leaf := _LEAF.search(text):
        end = max((match.end() for match in _FILE.finditer(text)), default=leaf.end())
        files = [match[1] for match in _FILE.finditer(text) if not match[1].endswith("/")]
        place = ", ".join([f"leaf {leaf[1].replace('.', '/')}", *(f"file {file}" for file in files[-1:])])
        reason = _DETAIL.split(text[end:].lstrip(": "))[0] or ("it is missing" if "NOT_FOUND" in text else "it cannot be read")
        return f"{place}: {_shortened(reason, 200)}"
    return f"{type(error).__name__}: {_shortened(text, 300)}"


def _shortened(text: str, size: int) -> str:
    return text if len(text) <= size else f"{text[: size // 2]} ... {text[-size // 2 :]}"


def free_names(path: epath.Path) -> Iterator[epath.Path]:
    """The path, or with .2, .3, ... at its end, as long as nothing has that name."""
    names = (path if number == 1 else path.with_name(f"{path.name}.{number}") for number in range(1, 10**6))
    return (name for name in names if not name.exists())


def remove_unfinished(directory: epath.Path) -> None:
    """Remove what a failed save left, so that a full disk has its space again. What cannot be removed stays."""
    with contextlib.suppress(OSError):
        for path in directory.iterdir():
            if ".orbax-checkpoint-tmp" in path.name:
                path.rmtree(missing_ok=True)


class Watched:
    """A directory that should stay where it is. Without it, libraries would make it anew, on whatever disk lies below a lost mount."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._directory = directory
        self._device = self._current()

    def check(self) -> None:
        """Raise OSError where the directory has gone, or lies on another device than before. One that was never there may be made."""
        device = self._current()
        if self._device is not None and device != self._device:
            raise OSError(errno.ENOENT, f"{os.fspath(self._directory)} has vanished: it was removed, or its disk was unmounted")
        self._device = device

    def _current(self) -> int | None:
        try:
            return os.stat(self._directory).st_dev
        except OSError:
            return None
