"""Batches made ahead of their use, by a thread or by worker processes, on Grain.

The batch of step k is a pure function of k; workers only decide who makes it and when.
"""

from __future__ import annotations

import atexit
import errno
import functools
import gc
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, TypeVar

import cv2
import grain
from absl import flags
from grain.experimental import DatasetOptions, WithOptionsIterDataset

from sere_jax.data.batches.maker import BatchError, BatchMaker

_SHARED_FROM = 1 << 20  # bytes; smaller arrays are cheaper to copy through a pipe than to map
_GRACE = 30.0  # seconds that a worker goes on after SIGTERM
_ENDED = "terminated unexpectedly"  # Grain's words for a worker that ended without an error
# 0: the C library says so where the write of a semaphore was cut short.
_SYSTEM = (0, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN)
_log = logging.getLogger(__name__)

BatchT = TypeVar("BatchT")


class WorkersFailed(BatchError):
    """The system gives the data workers too little memory, shared memory, files or processes, or has ended one of them."""


def batches_of_steps(maker: BatchMaker[BatchT], start_step: int, total_steps: int, *, workers: int, prefetch: int) -> Iterator[BatchT]:
    """The batches of steps start_step .. total_steps - 1, in order.

    `workers` processes make whole batches in turn, each `prefetch` ahead. With `workers=0` a thread of this process makes them,
    `prefetch` ahead; with `prefetch=0` too, they are made when asked for. Neither changes a byte. Closing the iterator ends the workers.

    Raises UnreadableData (the images) and WorkersFailed (the system) while iterating.
    """
    return _iterate(_dataset(maker, start_step, total_steps, workers, prefetch))


def _dataset(maker: BatchMaker[Any], start_step: int, total_steps: int, workers: int, prefetch: int) -> grain.IterDataset:
    batches = grain.MapDataset.range(start_step, max(start_step, total_steps)).map(maker)
    ahead = 0 if workers else prefetch  # a worker makes one batch at a time and keeps `prefetch` in its own queue
    reading = grain.ReadOptions(num_threads=min(ahead, 1), prefetch_buffer_size=ahead)
    dataset = batches.to_iter_dataset(reading)
    if workers == 0:
        return dataset
    if not flags.FLAGS.is_parsed():  # Grain reads absl flags; a program that does not use absl has not parsed any
        flags.FLAGS.mark_as_parsed()
    queue = max(1, prefetch)
    shared = _shared_memory_threshold(maker, batches=workers * (2 * queue + 1) + 2)
    dataset = WithOptionsIterDataset(dataset, DatasetOptions(min_shm_size=shared))
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=queue)
    return dataset.mp_prefetch(options, functools.partial(_start_worker, os.getpid()))


def _shared_memory_threshold(maker: BatchMaker[Any], batches: int) -> int:
    """Bytes from which an array travels through shared memory; out of reach where that could not hold `batches` batches.

    A container's /dev/shm is often 64 MB, and writing past its end kills a worker with SIGBUS. Pipes are slower and safe.
    """
    needed = batches * maker.rows * sum(array.nbytes for array in maker.row.empty(1))
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:  # not Linux: shared memory lives elsewhere
        return _SHARED_FROM
    if needed <= free:
        return _SHARED_FROM
    _log.warning("/dev/shm has %d MB free but up to %d MB are on the way from workers: using pipes (slower)", free >> 20, needed >> 20)
    return sys.maxsize


def _iterate(dataset: grain.IterDataset) -> Iterator[Any]:
    iterator = iter(dataset)
    atexit.register(iterator.close)  # a program that ends without closing the iterator must not leave workers or shared memory
    try:
        yield from iterator
    except (OSError, RuntimeError) as error:
        if text := _of_system(error):
            raise WorkersFailed(f"no more batches: {text}; data.workers=0 needs no worker") from error
        raise
    finally:
        atexit.unregister(iterator.close)
        iterator.close()


@atexit.register  # before the end of Grain's thread, which an import above has registered
def _release_last_batches() -> None:
    """Free the shared memory of batches that nobody needs any more: Python warns of it at the end of a program.

    Cycles of references hold some, and XLA's threads the last ones until shortly after the last step. Grain frees it in a thread of
    its own, which ends with the program. A task given to the thread ends after the earlier ones.
    """
    module = sys.modules.get("grain._src.python.ipc.shared_memory_array")  # there is no public name
    shared = getattr(module, "SharedMemoryArray", None)
    if thread := getattr(shared, "_del_thread_pool", None):
        latest = time.monotonic() + 2.0
        gc.collect()
        while any(type(one) is shared for one in gc.get_objects()) and time.monotonic() < latest:
            time.sleep(0.02)
            gc.collect()
        thread.apply_async(int).wait(timeout=2.0)


def _of_system(error: OSError | RuntimeError) -> str:
    """What the system refused to a worker, or how a worker ended; '' for other errors."""
    if isinstance(error, OSError):
        lacks = "the data workers need more shared memory (/dev/shm), memory, open files or processes than the system gives"
        return f"{lacks} ({error.strerror if error.errno else 'a write was cut short'})" if error.errno in _SYSTEM else ""
    if _ENDED not in str(error):
        return ""
    code = str(error).partition("exit code ")[2].partition(".")[0]
    return f"a data worker was ended from outside (exit code {code}; -9 is SIGKILL, often for want of memory)"


def _start_worker(parent: int, index: int, count: int) -> None:
    """Set up a worker process: one thread, deaf to the signals that end the run, and ended with its parent."""
    del index, count
    cv2.setNumThreads(0)
    # Ctrl-C and a scheduler's SIGTERM reach the whole process group. The trainer saves and then closes its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave_later)
    threading.Thread(target=_watch_parent, args=(parent,), daemon=True).start()


def _leave_later(number: int, frame: object) -> None:
    del frame
    timer = threading.Timer(_GRACE, os._exit, (128 + number,))
    timer.daemon = True  # closed in time, the worker does not wait for the timer
    timer.start()


def _watch_parent(parent: int) -> None:
    """End this process when the trainer was killed. (PR_SET_PDEATHSIG would follow the thread that started it, which Grain ends.)"""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
