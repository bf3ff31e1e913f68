"""One run a workdir in a bucket: an object that says who writes there, and that its owner rewrites as long as it lives.

A bucket has no lock that ends with its process. So the owner writes the object anew every `BEAT_SECONDS`, and one that has not changed
for `DEAD_AFTER_SECONDS` belongs to a process that was killed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator

from etils import epath

from sere_jax import buckets

BEAT_SECONDS = 20.0
DEAD_AFTER_SECONDS = 90.0
_LOOK_EVERY_SECONDS = 5.0
_CONTRADICTIONS = 20


class Taken(RuntimeError):
    """Another process that lives holds the lease."""


@contextlib.contextmanager
def leased(path: epath.Path, *, beat_seconds: float = BEAT_SECONDS, dead_after_seconds: float = DEAD_AFTER_SECONDS) -> Iterator[None]:
    """Hold the lease at `path` while the block runs.

    Where the object is there already, its owner gets `dead_after_seconds` to give a sign of life; then the lease is taken over. A requeued
    Slurm job takes over from its own earlier start at once, which lives on only where its node failed. An owner whose lease is taken ends
    with exit code 1 at its next beat that reaches the bucket. So the block begins two beats after the lease was taken over, and only
    if it is still held: of two that take it over, one goes on.

    Raises:
      Taken: its owner lives.
      OSError: the bucket cannot be written to.
    """
    lease = _Lease(path)
    lease.acquire(beat_seconds, dead_after_seconds)
    thread = threading.Thread(target=lease.beat, args=(beat_seconds,), name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        lease.ended.set()
        thread.join(timeout=60.0)
        with contextlib.suppress(OSError):
            lease.release()


class _Lease:
    def __init__(self, path: epath.Path) -> None:
        self.ended = threading.Event()
        self._path, self._beats = path, 0
        self._token = uuid.uuid4().hex
        self._record = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S"), "token": self._token}
        self._record |= _slurm_start()

    def acquire(self, beat_seconds: float, dead_after_seconds: float) -> None:
        """Hold the lease, once its owner is dead, has released it, or has had the time to notice that it was taken."""
        while self._create(dead_after_seconds):
            _tell(f"{self._path}: taken over; going on in {2 * beat_seconds:.0f} s, in which an owner that lives on would end")
            try:
                time.sleep(2 * beat_seconds)
                if self._token.encode() in (self._read() or b""):
                    return
            except BaseException:
                with contextlib.suppress(OSError):
                    self.release()
                raise

    def _create(self, dead_after_seconds: float) -> bool:
        """Create the object, in place of one whose owner is dead; whether there was such a one."""
        missing, taken = 0, False
        while not buckets.create(self._path, self._content()):
            content = self._read()
            if content is None:  # released in between, or the bucket contradicts itself
                missing += 1
                if missing == _CONTRADICTIONS:
                    reason = "the bucket refuses to create the object, because it is there, and does not find it"
                    raise OSError(errno.EIO, reason, str(self._path))
                time.sleep(_LOOK_EVERY_SECONDS / 10)
                continue
            if not _is_earlier_start(content, self._record):
                self._wait(content, dead_after_seconds)
            if self._read() == content:
                with buckets.os_errors(self._path):
                    self._path.unlink(missing_ok=True)
                taken = True
        return taken

    def _wait(self, content: bytes, dead_after_seconds: float) -> None:
        """Wait for a sign of life of the owner. Returns when it is dead or has released the lease; raises Taken when it lives."""
        _tell(
            f"{self._path}: a run wrote there before ({describe(content)}) and did not say that it ended; waiting "
            f"{dead_after_seconds:.0f} s for a sign of life"
        )
        until = time.monotonic() + dead_after_seconds
        while time.monotonic() < until:
            time.sleep(min(_LOOK_EVERY_SECONDS, dead_after_seconds / 10))
            now = self._read()
            if now is None:
                return
            if now != content:
                raise Taken(describe(now))

    def beat(self, seconds: float) -> None:
        """Rewrite the object until the lease ends. Runs in a thread; a failed request is repeated at the next beat."""
        while not self.ended.wait(seconds):
            with contextlib.suppress(OSError):
                content = self._read()
                if content is not None and self._token.encode() not in content:
                    message = f"{self._path}: another run has taken over the workdir ({describe(content)}); this one ends, unsaved"
                    os.write(2, f"{message}\n".encode())
                    os._exit(1)
                self._beats += 1
                buckets.put_bytes(self._path, self._content())

    def release(self) -> None:
        """Delete the object, unless another run has taken over."""
        content = self._read()
        if content is not None and self._token.encode() in content:
            with buckets.os_errors(self._path):
                self._path.unlink(missing_ok=True)

    def _content(self) -> bytes:
        return (json.dumps({**self._record, "beat": self._beats}) + "\n").encode()

    def _read(self) -> bytes | None:
        try:
            with buckets.os_errors(self._path):
                return self._path.read_bytes()
        except FileNotFoundError:
            return None


def describe(content: bytes) -> str:
    """The owner of a lease, in words."""
    try:
        record = json.loads(content)
        return f"process {record['pid']} on {record['host']}, since {record['since']}"
    except (ValueError, KeyError, TypeError):
        return "it does not say which"


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _slurm_start() -> dict[str, str]:
    """The number of a Slurm job and how often it was requeued; {} outside of one."""
    job = os.environ.get("SLURM_JOB_ID")
    return {"slurm_job": job, "slurm_start": os.environ.get("SLURM_RESTART_COUNT", "0")} if job else {}


def _is_earlier_start(content: bytes, record: dict[str, object]) -> bool:
    """Whether a lease is of an earlier start of the same Slurm job."""
    try:
        other = json.loads(content)
        return bool(record.get("slurm_job")) and other["slurm_job"] == record["slurm_job"] and other["slurm_start"] != record["slurm_start"]
    except (ValueError, KeyError, TypeError):
        return False
