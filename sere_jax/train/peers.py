"""The other processes of a run: how a failure of one ends all of them soon, with a sentence each.

Without this, the others wait in a collective until JAX notices, minutes later, and end with a stack of C++ frames. JAX's coordination
service, which process 0 hosts, carries the messages.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax._src import distributed as _jax_distributed  # the service's client has no public name

_FAILED, _ALIVE, _SAID, _LEFT, _MET = (f"sere_jax/{name}" for name in ("failed", "alive", "said", "left", "met"))
_LOOK_MS = 500  # how long a look at the service waits for a failure
GRACE_SECONDS = 5.0  # in which a process may end by itself after a failure of another
_LIMIT_SECONDS = 30
_DAY_MS = 24 * 3600 * 1000

T = TypeVar("T")


class Peers:
    """Watches the other processes from two threads, and ends this process after one of them failed or was lost.

    Args:
      client: of JAX's coordination service.
      process, count: this process, and how many there are.
      limit: seconds without a sign of life after which a process counts as lost; three times as many before the first step, since
        Python may hold its threads up while it traces and compiles.
      leave: ends this process with an exit code, from any thread.
    """

    def __init__(self, client: Any, process: int, count: int, limit: float, leave: Callable[[int], None] = os._exit) -> None:
        self.started = False  # the steps have begun
        self.where: Callable[[], str] = lambda: "start all again"  # continues the sentence on a lost process
        self._limit, self._meetings = limit, 0
        self._client, self._process, self._count, self._leave = client, process, count, leave
        self._stop = threading.Event()
        self._answered = time.monotonic()
        self._seen: dict[str, tuple[str, float]] = {}
        self._threads = [threading.Thread(target=work, name="peers", daemon=True) for work in (self._beat, self._look)]

    def start(self) -> None:
        """Begin to watch."""
        for thread in self._threads:
            thread.start()

    @property
    def limit(self) -> float:
        """Seconds without a sign of life, now."""
        return self._limit if self.started else 3 * self._limit

    def stop(self) -> None:
        """End the threads; to be called before JAX takes the client down."""
        with contextlib.suppress(Exception):
            self._client.key_value_set(f"{_LEFT}/{self._process}", "1")  # its signs of life end, and it is not lost
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=2.0)

    def announce(self, text: str) -> None:
        """Tell the other processes that this one fails. The first failure of a run counts."""
        with contextlib.suppress(Exception):  # another was first, or the service has ended
            self._client.key_value_set(_FAILED, f"{self._process}\n{text}")

    def says(self, text: str) -> bool:
        """Whether this process should print an error. Of processes with the same error one does: the first where that has it."""
        key = f"{_SAID}/{hashlib.sha256(text.encode(errors='surrogateescape')).hexdigest()}"
        try:
            if self._process != 0:
                with contextlib.suppress(Exception):  # process 0 has no such error
                    self._client.blocking_key_value_get(key, 2000)
                    return False
            self._client.key_value_set(key, str(self._process))
        except Exception as error:
            return "ALREADY_EXISTS" not in str(error)
        return True

    def left_by_all(self) -> bool:
        """Say that this process ends, and wait until all others have said so, or have had time to. Whether they did."""
        latest = time.monotonic() + GRACE_SECONDS + 3.0
        with contextlib.suppress(Exception):
            self._client.key_value_set(f"{_LEFT}/{self._process}", "1")
            while time.monotonic() < latest:
                if len(self._client.key_value_dir_get(_LEFT)) >= self._count:
                    return True
                time.sleep(0.1)
        return False

    def meet(self) -> None:
        """Wait until all processes have called this as often as this one, however long the slowest takes."""
        self._meetings += 1
        self._client.wait_at_barrier(f"{_MET}/{self._meetings}", _DAY_MS)

    def missing(self) -> str:
        """After an error of a collective: which processes give no sign of life any more, as a sentence; '' where all do."""
        try:
            before = dict(self._client.key_value_dir_get(_ALIVE))
            time.sleep(self._limit / 4)  # more than two signs of life
            now = dict(self._client.key_value_dir_get(_ALIVE))
            gone = {key.rpartition("/")[2] for key, _ in self._client.key_value_dir_get(_LEFT)}
        except Exception:
            return f"process 0 of {self._count} was lost"
        this = str(self._process)
        lost = [rank for key in now if (rank := key.rpartition("/")[2]) not in gone | {this} and before.get(key) == now[key]]
        return f"process {', '.join(sorted(lost, key=int))} of {self._count} was lost: it gives no sign of life" if lost else ""

    def _beat(self) -> None:
        """Give signs of life; process 0 looks at those of the others too."""
        beat = 0
        while not self._stop.wait(self._limit / 10 if beat else 0):
            beat += 1
            try:
                self._client.key_value_set(f"{_ALIVE}/{self._process}", str(beat), allow_overwrite=True)
                self._answered = time.monotonic()
                if self._process == 0 and (lost := self._silent(self._client.key_value_dir_get(_ALIVE))):
                    self.announce(f"process {', '.join(lost)} of {self._count} was lost: no sign of life for {self.limit:g} s")
            except Exception:  # the service has ended: `_look` tells
                return

    def _silent(self, beats: list[tuple[str, str]]) -> list[str]:
        """The processes whose sign of life has not changed for too long."""
        now = time.monotonic()
        for key, beat in beats:
            if self._seen.get(key, ("", 0.0))[0] != beat:
                self._seen[key] = (beat, now)
        silent = {key.rpartition("/")[2] for key, (_, since) in self._seen.items() if now - since > self.limit}
        if silent:
            silent -= {key.rpartition("/")[2] for key, _ in self._client.key_value_dir_get(_LEFT)}
        return sorted(silent, key=int)

    def _look(self) -> None:
        """Wait for a failure, and end this process after it."""
        while not self._stop.is_set():
            try:
                text = self._client.blocking_key_value_get(_FAILED, _LOOK_MS)
            except Exception as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    self._end(f"process 0 of {self._count} was lost; {self.where()}", grace=0.0)
                elif time.monotonic() - self._answered > self.limit:
                    self._end(f"process 0 of {self._count} was lost: no sign of life for {self.limit:g} s; {self.where()}", grace=0.0)
                continue
            process, _, reason = text.partition("\n")
            if " was lost: " in reason:
                self._end(f"{reason}; {self.where()}", grace=0.0)
            sentence = reason if int(process) == self._process else f"process {process} of {self._count} ended: {reason.splitlines()[0]}"
            self._end(f"{sentence}\nprocess {self._process} ends too; {self.where()}", grace=GRACE_SECONDS)

    def _end(self, text: str, grace: float) -> None:
        if self._stop.wait(grace):
            return
        with contextlib.suppress(OSError, ValueError):
            print(text, file=sys.stderr, flush=True)
        # Only now: process 0 takes the service down when all have left, and JAX then ends this process before it can print.
        with contextlib.suppress(Exception):
            self._client.key_value_set(f"{_LEFT}/{self._process}", "1") if grace else None
        self._leave(1)


_current: Peers | None = None


def watch(limit: int = _LIMIT_SECONDS) -> None:
    """Watch the other processes of this run until the program ends, once JAX is started. A single process has none."""
    global _current
    client = _jax_distributed.global_state.client
    if client is None or jax.process_count() == 1 or _current is not None:
        return
    _current = Peers(client, jax.process_index(), jax.process_count(), float(limit))
    atexit.register(_current.stop)  # runs before JAX's own, which was registered earlier
    _current.start()


def resumes(where: Callable[[], str]) -> None:
    """Say that the steps begin, and give the words that follow the report of a lost process: the step, and where the run goes on."""
    if _current is not None:
        _current.where, _current.started = where, True


def met(compiled: T) -> T:
    """Wait until the other processes, where there are any, have compiled too; return what was compiled.

    Each compiles at its own pace, and a CPU's collectives give up after 30 seconds. A process that fails meanwhile ends this one.
    """
    if _current is not None:
        _current.meet()
    return compiled


def announced(error: Exception) -> Exception:
    """Tell the other processes that an error ends this one, before anything here may wait for them; return the error."""
    if _current is not None:
        _current.announce(str(error))
    return error


def ended(error: Exception, code: int, only_first: bool = False) -> int:
    """Print the error that ends the program, once for all processes that have it, and return the exit code.

    With several processes the others learn of it. Where they have not ended within seconds, this one ends here, because JAX's own end
    would wait for them. With `only_first`, process 0 alone prints: the error is raised everywhere, and says the same in other words.
    """
    if _current is None:
        print(error, file=sys.stderr)
        return code
    _current.announce(str(error))
    if jax.process_index() == 0 if only_first else _current.says(str(error)):
        print(error, file=sys.stderr, flush=True)
    return _leave(_current, code)


def broken(error: Exception) -> int:
    """End the program after an unforeseen error, as `ended` does. A single process raises it again.

    Collectives raise errors when another process dies. Then a line says which was lost, in place of the traceback.
    """
    if _current is None:
        raise error
    lost = _current.missing()
    _current.announce(lost or f"{type(error).__name__}: {error}")
    if lost:
        print(f"{lost}; {_current.where()}", file=sys.stderr, flush=True)
    else:
        traceback.print_exception(error)
    return _leave(_current, 1)


def _leave(current: Peers, code: int) -> int:
    if not current.left_by_all():
        sys.stdout.flush()
        os._exit(code)
    return code
