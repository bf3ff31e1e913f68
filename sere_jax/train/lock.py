"""One run a workdir: a lock file that says who writes there."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import filelock
from etils import epath

from sere_jax.buckets import path_of
from sere_jax.train import lease
from sere_jax.writing import remove_partial

NAME = ".lock"
_OURS = ("config.json", "launch.json", "data.json", "metrics.jsonl")  # what the holder of the lock alone writes there
# File systems without flock (mounted buckets, some network file systems) say one of these.
_NO_FLOCK = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


class WorkdirError(RuntimeError):
    """The workdir cannot be used: another run writes there, or nothing can be written there."""


@contextlib.contextmanager
def locked(directory: str | os.PathLike[str]) -> Iterator[None]:
    """Hold `directory` for this process while the block runs; it is made where it does not exist.

    The lock is a `flock` on DIRECTORY/.lock, which the kernel releases however the process ends. Where a file system has no `flock`,
    the existence of DIRECTORY/.lock.exists is the lock; one left by a process of this host that has ended is taken over. In a bucket
    it is a lease (`train.lease`). What a killed holder left half-written is removed. Reading the directory, and evaluations that
    write below it, need no lock.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as workdir, locked(workdir):
      ...     print(owner(workdir).partition(",")[0] != "")
      True

    Raises:
      WorkdirError: another process holds it (says host, process and time), or nothing can be written there.
    """
    path = path_of(directory)
    with contextlib.ExitStack() as stack:
        try:
            if isinstance(path, epath.Path):
                stack.enter_context(lease.leased(path / NAME))
            else:
                path.mkdir(parents=True, exist_ok=True)
                stack.callback(_release, _acquire(path))
                remove_partial(path, _OURS)
                remove_partial(path / "checkpoints")
                remove_partial(path / "listings")
        except (filelock.Timeout, lease.Taken) as error:
            words = owner(path) if isinstance(error, filelock.Timeout) else error
            raise WorkdirError(
                f"{path}: another run writes there ({words}); expected one run a workdir. Stop that one, or take another workdir."
            ) from None
        except OSError as error:
            why = error.strerror or error
            raise WorkdirError(f"{path}: nothing can be written there ({why}); expected a directory to write to") from error
        yield


def owner(directory: str | os.PathLike[str]) -> str:
    """Who holds the lock of a directory, or held it last, in words."""
    path = path_of(directory)
    for name in (NAME, f"{NAME}.exists"):
        try:
            text = (path / name).read_text()
        except (OSError, UnicodeDecodeError):
            continue
        try:
            record = json.loads(text)
            return f"process {record['pid']} on {record['host']}, since {record['since']}"
        except (ValueError, KeyError, TypeError):
            if words := text.split():
                return f"process {words[0]}" + (f" on {words[1]}" if len(words) > 1 else "")
    return "it does not say which"


def _release(lock: filelock.BaseFileLock) -> None:
    with contextlib.suppress(OSError):  # the directory may have vanished
        lock.release()


def _acquire(path: Path) -> filelock.BaseFileLock:
    lock: filelock.BaseFileLock = filelock.FileLock(path / NAME, timeout=0, thread_local=False, on_acquired=_write_owner)
    try:
        lock.acquire()
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_FLOCK:
            raise
        lock = filelock.SoftFileLock(path / f"{NAME}.exists", timeout=0, thread_local=False)
        lock.acquire()
    return lock


def _write_owner(descriptor: int) -> None:
    record = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    with contextlib.suppress(OSError):  # a full disk: the lock holds without a name
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, (json.dumps(record) + "\n").encode(), 0)
