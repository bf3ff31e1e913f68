"""Where files are written, and how: a reader sees the old file or the whole new one, never half of one."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import socket
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

from etils import epath

from sere_jax import buckets
from sere_jax.buckets import Location, is_address

WRITABLE = ".writable-"  # begins the names of trial files, which are removed at once
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EFBIG)  # said of a file without its name
_PARTIAL = re.compile(r"\.[0-9a-f]{8}\.partial\.(.+)")


class WriteError(RuntimeError):
    """Nothing can be written to a directory. The message names it and says why, in one line."""


class WriteFailed(WriteError):
    """Nothing can be written any more to a directory that took a file before: its disk is full, or has gone."""


def place(path: str | os.PathLike[str]) -> Location:
    """The absolute path that every program takes a path for; of an address, `gs://BUCKET/NAME`, its path in the bucket.

    `~` and `~USER` are home directories, and a relative path starts at the current directory. `LINK/..` is the parent of the directory
    that the link leads to, as for the operating system. A `~` before a name that is no user's is part of a name.

    Example:
      >>> place("~/run") == Path.home() / "run" and place("run") == Path.cwd() / "run"
      True
    """
    if is_address(path):
        return buckets.location(path)
    expanded = os.path.expanduser(path)
    return Path(os.path.realpath(expanded) if ".." in Path(expanded).parts else os.path.abspath(expanded))


def unknown_user(path: str) -> str:
    """The name in a path that begins with `~NAME` where no user and no file has that name; '' for other paths.

    Example:
      >>> unknown_user("~nobody-of-that-name/run"), unknown_user("~/run")
      ('nobody-of-that-name', '')
    """
    first = path.partition(os.sep)[0]
    return first[1:] if first.startswith("~") and os.path.expanduser(first) == first and not os.path.lexists(first) else ""


def destination(path: str | os.PathLike[str]) -> Location:
    """The absolute path of something that is to be written, as `place`. A path that names an unknown user is refused.

    Raises:
      WriteError: the path begins with `~NAME`, and there is neither a user nor a file of that name, or it is an address that cannot
        be written to.

    Example:
      >>> destination("~/run") == place("~/run")
      True
    """
    if mistake := buckets.address_mistake(os.fspath(path)):
        raise WriteError(f"{os.fspath(path)}: {mistake}")
    if user := unknown_user(os.fspath(path)):
        name = os.fspath(path)
        raise WriteError(f"{name}: expected a path to write to; there is no user {user!r}. A path of that name is ./{name}")
    return place(path)


@contextlib.contextmanager
def writing_to(directory: str | os.PathLike[str]) -> Iterator[Location]:
    """Make a directory, try it, and turn what its disk refuses during the block into `WriteError`.

    Other errors pass, those of files elsewhere among them.

    Example:
      >>> with writing_to("made/here") as directory:
      ...     _ = (directory / "table.txt").write_text("1 2 3")

    Raises:
      WriteError: the directory cannot be made or written to.
      WriteFailed: that, after the directory was tried.
    """
    directory = directory if isinstance(directory, epath.Path) else destination(directory)
    kind = WriteError
    try:
        with buckets.os_errors(directory):
            _try_to_write(directory)
            kind = WriteFailed
            yield directory
    except OSError as error:
        if isinstance(error.filename, str) and not place(error.filename).is_relative_to(directory) and directory.exists():
            raise
        if error.filename is None and error.errno not in _DISK:
            raise
        why = error.strerror or str(error)
        raise kind(f"{directory}: nothing can be written there ({why}); expected a directory to write to") from error


def _try_to_write(directory: Location) -> None:
    if isinstance(directory, epath.Path):
        probe = directory / f"{WRITABLE}{socket.gethostname()}-{os.getpid()}"
        buckets.put_bytes(probe, b"")
        probe.unlink()
        return
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory, prefix=WRITABLE) as file:
        file.write(bytes(4096))


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and rename it to `path` when the block ends; an error in the block deletes it.

    For a path in a bucket the temporary file lies on this machine, and is put into the bucket when the block ends.

    The directory is made when missing. The file gets the mode that the process's umask gives to new files, whatever mode the writer
    set: safetensors writes files that only their owner can read. Where `path` is a link, the file it leads to is replaced. A device or a
    pipe (/dev/stdout) cannot be replaced: then `path` itself is yielded.

    Example:
      >>> with replacing("table.txt") as temporary:
      ...     _ = temporary.write_text("1 2 3")
      >>> Path("table.txt").read_text()
      '1 2 3'
    """
    if is_address(path):
        with buckets.uploading(buckets.location(path)) as file:
            yield file
        return
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        yield path
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # The ending stays: some writers choose the format by it.
    # The name differs between threads, processes and machines that share a disk.
    temporary = path.with_name(f".{secrets.token_hex(4)}.partial.{path.name}")  # as _PARTIAL
    temporary.touch(mode=0o666)
    mode = temporary.stat().st_mode
    try:
        yield temporary
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_partial(directory: Location, names: Collection[str] = ()) -> None:
    """Remove the temporary files that killed processes left of `replacing`, all or those of some names. What cannot be removed stays.

    For directories, or names, that no other process writes now. In a bucket nothing is left.
    """
    if isinstance(directory, Path):
        with contextlib.suppress(OSError):
            for path in directory.iterdir():
                if (match := _PARTIAL.fullmatch(path.name)) and (not names or match[1] in names):
                    path.unlink(missing_ok=True)
