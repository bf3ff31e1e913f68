"""Writing files so that a reader sees the old file or the whole new one, never half of one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and rename it to `path` when the block ends; an error in the block deletes it.

    The directory is made when missing. The file gets the mode that the process's umask gives to new files, whatever mode the writer
    set: safetensors writes files that only their owner can read. Where `path` is a link, the file it leads to is replaced. A device or a
    pipe (/dev/stdout) cannot be replaced: then `path` itself is yielded.

    Example:
      >>> with replacing("table.txt") as temporary:
      ...     _ = temporary.write_text("1 2 3")
      >>> Path("table.txt").read_text()
      '1 2 3'
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        yield path
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # The ending stays: some writers choose the format by it.
    temporary = path.with_name(f".{os.getpid()}.partial.{path.name}")
    temporary.touch(mode=0o666)
    mode = temporary.stat().st_mode
    try:
        yield temporary
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
