"""Several processes of one run: how they start, exchange text and fail together."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import importlib.util
import json
import os
import socket
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from sere_jax.buckets import is_outage

_SLURM_NEEDED = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")

_CONCURRENT_COLLECTIVES = "--xla_cpu_enable_concurrency_optimized_scheduler"


class DistributedError(ValueError):
    """The flags or the environment describe processes that cannot be started."""


class OtherProcessError(RuntimeError):
    """Another process failed in a block that all processes enter. Only process 0 should print the message.

    `outage`: a bucket did not answer one of them (`buckets.Outage`).
    """

    def __init__(self, message: str, outage: bool = False) -> None:
        super().__init__(message)
        self.outage = outage


def start_distributed(*, coordinator: str = "", num_processes: int = 0, process_id: int = -1) -> bool:
    """Join the processes of one run, before JAX touches a device. Returns whether there is more than one process to join.

    Explicit arguments win (`coordinator` is HOST:PORT of process 0). Without them, a Slurm step of several tasks and a TPU slice of
    several hosts are recognised; anything else is a single process, and nothing is started. On a TPU VM whose environment lists no
    hosts, JAX asks the VM's metadata server.

    Raises:
      DistributedError: only some of the three arguments are given, they contradict one another, the coordinator's host is unknown, or
        its port is taken.
    """
    if jax.distributed.is_initialized():
        _order_collectives()  # in time as long as XLA has compiled nothing
        return True
    if coordinator or num_processes or process_id >= 0:
        _check_explicit(coordinator, num_processes, process_id)
        host, _, port = coordinator.rpartition(":")
        _check_coordinator(host.strip("[]"), int(port), process_id, "--coordinator")
        _order_collectives()
        jax.distributed.initialize(coordinator, num_processes=num_processes, process_id=process_id)
        return True
    if _slurm_tasks(os.environ) > 1:
        _check_coordinator("", _slurm_port(os.environ), int(os.environ["SLURM_PROCID"]), "the coordinator's port of this Slurm job")
        _order_collectives()
        jax.distributed.initialize(cluster_detection_method="slurm", local_device_ids=_slurm_devices(os.environ))
        return True
    hosts = _tpu_hosts(os.environ)
    if hosts > 1:
        _order_collectives()  # a TPU's hosts may run on their CPUs: JAX_PLATFORMS=cpu
        jax.distributed.initialize()
        return True
    return hosts == 0 and _has_tpu() and _start_on_tpu_vm()


def _order_collectives() -> None:
    """On CPUs, make XLA run collectives one after the other.

    By default its scheduler starts several at once, and each process may choose another order. The collectives then mix their
    data, and losses become NaN at random. The flag affects only XLA's CPU compiler, so it is set for all platforms.
    """
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if not flag.startswith(_CONCURRENT_COLLECTIVES)]
    os.environ["XLA_FLAGS"] = " ".join([*flags, f"{_CONCURRENT_COLLECTIVES}=false"])


def _start_on_tpu_vm() -> bool:
    _order_collectives()
    try:
        jax.distributed.initialize()
    except ValueError:  # no cluster was recognised: one machine by itself
        return False
    return jax.process_count() > 1


def _has_tpu() -> bool:
    """Whether this machine has TPU chips and libtpu, and JAX may use them. libtpu alone serves to compile ahead of time."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    allowed = not platforms or "tpu" in platforms.split(",")
    chips = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
    return allowed and bool(chips) and importlib.util.find_spec("libtpu") is not None


def _check_explicit(coordinator: str, num_processes: int, process_id: int) -> None:
    flags = f"coordinator={coordinator!r}, num_processes={num_processes}, process_id={process_id}"
    host, _, port = coordinator.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 2**16):
        raise DistributedError(f"found {flags}; expected coordinator as HOST:PORT of process 0 whenever one of the three is given")
    if num_processes < 1:
        raise DistributedError(f"found {flags}; expected num_processes of at least 1")
    if not 0 <= process_id < num_processes:
        raise DistributedError(f"found {flags}; expected process_id from 0 to {num_processes - 1}")


def _check_coordinator(host: str, port: int, process_id: int, name: str) -> None:
    """Refuse an unknown host and, on process 0, a port that is in use. JAX would crash on it in C++."""
    if host:
        try:
            socket.getaddrinfo(host, port)
        except OSError as error:
            raise DistributedError(f"{name}: found the host {host!r}, which cannot be resolved ({error.strerror})") from error
    if process_id != 0:
        return
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    with socket.socket(family) as probe:
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was just released is free
        try:
            probe.bind(("", port))
            probe.listen(1)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                return  # JAX will say what it cannot do here
            reason = "is taken by another program, another run, or a process of this one with the same process_id"
            reason = reason if error.errno == errno.EADDRINUSE else "may not be used by this user"
            raise DistributedError(f"{name}: port {port} of this machine {reason}; expected a free one") from error


def _slurm_tasks(environ: Mapping[str, str]) -> int:
    """Number of tasks of this Slurm step; 1 outside one. A batch script without srun has the job's variables but not the step's."""
    if not all(name in environ for name in _SLURM_NEEDED):
        return 1
    tasks = environ.get("SLURM_STEP_NUM_TASKS", environ["SLURM_NTASKS"])
    return int(tasks) if tasks.isdigit() else 1


def _slurm_port(environ: Mapping[str, str]) -> int:
    """The port that JAX derives from the number of a Slurm job; it is the same on all nodes."""
    return 2**16 - 2**12 + int(environ["SLURM_JOB_ID"]) % 2**12


def _slurm_devices(environ: Mapping[str, str]) -> list[int] | None:
    """All GPUs of the node if Slurm runs one task per node. By default JAX would use one GPU per task."""
    nodes = environ.get("SLURM_STEP_NUM_NODES") or environ.get("SLURM_NNODES") or ""
    gpus = environ.get("SLURM_GPUS_ON_NODE", "")
    if nodes.isdigit() and gpus.isdigit() and int(nodes) == _slurm_tasks(environ) and int(gpus) > 1:
        return list(range(int(gpus)))
    return None


def _tpu_hosts(environ: Mapping[str, str]) -> int:
    """Number of hosts of all TPU slices, from the variables of the TPU runtime; 0 if they are not set."""
    listed = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES") or ""
    slices = environ.get("MEGASCALE_NUM_SLICES", "1")
    return len([host for host in listed.split(",") if host]) * (int(slices) if slices.isdigit() else 1)


def gather_texts(text: str) -> list[str]:
    """Gather one text from each process, in process order. All processes must call it and get the same list."""
    if jax.process_count() == 1:
        return [text]
    encoded = np.frombuffer(text.encode(errors="surrogateescape"), np.uint8)  # names of files may hold any byte
    lengths = multihost_utils.process_allgather(np.int32(len(encoded)))
    padded = np.zeros(max(1, int(lengths.max())), np.uint8)
    padded[: len(encoded)] = encoded
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [bytes(row[:length]).decode(errors="surrogateescape") for row, length in zip(rows, lengths, strict=True)]


def gather_lines(lines: list[str]) -> list[str]:
    """Gather the lines of all processes without repetition. Lines that process 0 lacks begin with their process. All must call it."""
    first, *others = (text.split("\n") if text else [] for text in gather_texts("\n".join(lines)))
    seen = {*first}
    for process, its_lines in enumerate(others, 1):
        new = [line for line in its_lines if line not in seen]
        seen.update(new)
        first += [f"process {process}: {line}" for line in new]
    return first


def text_of_first(text: str) -> str:
    """The text of process 0. All processes must call it."""
    if jax.process_count() == 1:
        return text
    encoded = np.frombuffer(text.encode(errors="surrogateescape"), np.uint8)  # names of files may hold any byte
    length = int(multihost_utils.broadcast_one_to_all(np.int64(len(encoded))))
    padded = np.zeros(max(1, length), np.uint8)
    padded[: min(len(encoded), length)] = encoded[:length]
    return np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes()[:length].decode(errors="surrogateescape")


def assert_equal(facts: Mapping[str, Any], heading: str) -> None:
    """Check that all processes have equal facts. All processes must call it.

    `facts` maps a name to any value that JSON can hold.

    Raises:
      OtherProcessError: on all processes; the message names each fact that differs, the process, its value and process 0's.

    Example:
      >>> assert_equal({"seed": 3}, "the processes of a run share their settings")
    """
    if jax.process_count() == 1:
        return
    text = json.dumps(facts, sort_keys=True)
    if len(set(gather_texts(hashlib.sha256(text.encode()).hexdigest()))) == 1:
        return
    first = json.loads(text_of_first(text))
    mine = json.loads(text)
    differing = [name for name in sorted(first.keys() | mine.keys()) if first.get(name) != mine.get(name)]
    lines = [f"{name}: found {mine.get(name)!r}, process 0 has {first.get(name)!r}" for name in differing]
    raise OtherProcessError("\n  ".join([f"{heading}:", *gather_lines(lines)]))


@contextlib.contextmanager
def together() -> Iterator[None]:
    """A block that fails on all processes if it fails on one, so that none waits for a process that has ended.

    Process 0 raises its own error, or `OtherProcessError` with those of the others; other processes raise `OtherProcessError`. The
    block itself must not communicate.

    Example:
      >>> with together():
      ...     size = len("any work that may fail on one machine")
    """
    error: Exception | None = None
    try:
        yield
    except Exception as raised:
        if jax.process_count() == 1:
            raise
        error = raised
    texts = gather_texts("" if error is None else f"{int(is_outage(error))}{type(error).__name__}: {error}")
    if not any(texts):
        return
    if jax.process_index() == 0 and error is not None:
        raise error
    message = "\n".join(f"process {process}: {text[1:]}" for process, text in enumerate(texts) if text)
    raise OtherProcessError(message, outage=any(text.startswith("1") for text in texts)) from error
