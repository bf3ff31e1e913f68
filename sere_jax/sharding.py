"""Where arrays live: distributed start, the mesh, which leaf is cut along which axis, host batches -> global arrays.

There is one mesh with two axes, `data` and `fsdp`. A batch is cut along both; parameters, teacher and optimizer moments
are cut along `fsdp` only. Everything is `jax.jit` with `NamedSharding`: the compiler puts in the collectives.
"""

from __future__ import annotations

import glob
import importlib.util
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

PyTree = Any

# Smaller leaves are replicated: gathering a bias costs more time than keeping it everywhere costs memory.
MIN_SHARDED_SIZE = 2**14

_SLURM_NEEDED = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")


class DistributedError(ValueError):
    """The processes of this run cannot be told from the flags and the environment."""


def start_distributed(*, coordinator: str = "", num_processes: int = 0, process_id: int = -1) -> bool:
    """Join the processes of one run, before JAX touches a device; says whether there is more than one process to join.

    Given explicitly (`coordinator` is HOST:PORT of process 0), these are used. Otherwise a Slurm step of several tasks
    and a TPU slice of several hosts are recognised by themselves; anything else is a single process and nothing is
    started. (A TPU VM whose environment does not list its hosts is asked by JAX, through the VM's metadata server.)

    Raises:
      DistributedError: only some of the three are given, or they contradict one another.
    """
    if jax.distributed.is_initialized():
        return True
    if coordinator or num_processes or process_id >= 0:
        _check_explicit(coordinator, num_processes, process_id)
        _order_collectives()
        jax.distributed.initialize(coordinator, num_processes=num_processes, process_id=process_id)
        return True
    if _slurm_tasks(os.environ) > 1:
        _order_collectives()
        jax.distributed.initialize(cluster_detection_method="slurm", local_device_ids=_slurm_devices(os.environ))
        return True
    hosts = _tpu_hosts(os.environ)
    if hosts > 1:
        jax.distributed.initialize()
        return True
    return hosts == 0 and _has_tpu() and _start_on_tpu_vm()


def _order_collectives() -> None:
    """On CPUs, one collective after the other. XLA's scheduler otherwise starts several at once, in an order of each process's own;
    between processes their data are then mixed, and losses are NaN at random. Accelerators have queues and need no such thing."""
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_enable_concurrency_optimized_scheduler=false"


def _start_on_tpu_vm() -> bool:
    try:
        jax.distributed.initialize()
    except ValueError:  # no cluster was recognised: one machine by itself
        return False
    return jax.process_count() > 1


def _has_tpu() -> bool:
    """TPU chips and their library are here, and JAX may use them. The library alone (to compile ahead of time) is not enough."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    allowed = not platforms or "tpu" in platforms.split(",")
    chips = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
    return allowed and bool(chips) and importlib.util.find_spec("libtpu") is not None


def _check_explicit(coordinator: str, num_processes: int, process_id: int) -> None:
    given = f"coordinator={coordinator!r}, num_processes={num_processes}, process_id={process_id}"
    host, _, port = coordinator.rpartition(":")
    if not (host and port.isdigit()):
        raise DistributedError(f"found {given}; expected coordinator as HOST:PORT of process 0 whenever one of the three is given")
    if num_processes < 1:
        raise DistributedError(f"found {given}; expected num_processes of at least 1")
    if not 0 <= process_id < num_processes:
        raise DistributedError(f"found {given}; expected process_id from 0 to {num_processes - 1}")


def _slurm_tasks(environ: Mapping[str, str]) -> int:
    """Tasks of this Slurm step, 1 outside one. In a batch script without srun the job's variables exist, the step's do not."""
    if not all(name in environ for name in _SLURM_NEEDED):
        return 1
    tasks = environ.get("SLURM_STEP_NUM_TASKS", environ["SLURM_NTASKS"])
    return int(tasks) if tasks.isdigit() else 1


def _slurm_devices(environ: Mapping[str, str]) -> list[int] | None:
    """All of a node's GPUs where Slurm runs one task a node. JAX alone would take one GPU a task and leave the rest idle."""
    nodes = environ.get("SLURM_STEP_NUM_NODES") or environ.get("SLURM_NNODES") or ""
    gpus = environ.get("SLURM_GPUS_ON_NODE", "")
    if nodes.isdigit() and gpus.isdigit() and int(nodes) == _slurm_tasks(environ) and int(gpus) > 1:
        return list(range(int(gpus)))
    return None


def _tpu_hosts(environ: Mapping[str, str]) -> int:
    """Hosts of this TPU slice times slices, as the TPU runtime's own variables list them; 0 where they say nothing."""
    listed = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES") or ""
    slices = environ.get("MEGASCALE_NUM_SLICES", "1")
    return len([host for host in listed.split(",") if host]) * (int(slices) if slices.isdigit() else 1)


def make_mesh(fsdp: int = 1) -> Mesh:
    """The mesh ('data', 'fsdp') over all devices of all processes, the devices of process 0 first.

    `jax.make_mesh` may interleave the devices of several hosts to suit the network. Here rows of a batch belong to
    positions, and random numbers to rows, so the order has to be the processes' own; the `fsdp` groups, where most
    bytes travel, then lie within one host.

    Raises:
      ValueError: `fsdp` does not divide the number of devices.
    """
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    count = len(devices)
    if fsdp < 1 or count % fsdp:
        divisors = [size for size in range(1, count + 1) if count % size == 0]
        nearest = min(divisors, key=lambda size: abs(size - fsdp))
        raise ValueError(f"run.fsdp: found {fsdp}, expected a divisor of the {count} devices {divisors}; nearest: {nearest}")
    grid = np.array(devices).reshape(count // fsdp, fsdp)
    return Mesh(grid, ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Axis 0 of a batch is cut over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same values on every device."""
    return NamedSharding(mesh, PartitionSpec())


def leaf_sharding(shape: tuple[int, ...], mesh: Mesh, min_size: int = MIN_SHARDED_SIZE) -> NamedSharding:
    """The sharding of one leaf: `fsdp` over its largest divisible dimension (the first of equals), or replicated."""
    parts = mesh.shape["fsdp"]
    candidates = [axis for axis, size in enumerate(shape) if size and size % parts == 0]
    if parts == 1 or int(np.prod(shape)) < min_size or not candidates:
        return replicated(mesh)
    axis = max(candidates, key=lambda i: shape[i])
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "fsdp"))


def state_shardings(abstract_state: PyTree, mesh: Mesh, min_size: int = MIN_SHARDED_SIZE) -> PyTree:
    """A `NamedSharding` for each leaf of a state, in the state's structure.

    The rule looks at shapes only, so a parameter, its teacher and its optimizer moments are always cut alike.
    """
    return jax.tree.map(lambda leaf: leaf_sharding(tuple(leaf.shape), mesh, min_size), abstract_state)


def to_global(batch: PyTree, mesh: Mesh) -> PyTree:
    """This process's rows of a batch (NumPy, axis 0 = examples) -> global `jax.Array`s cut over all devices.

    The global rows are process 0's, then process 1's, and so on. `None` leaves stay `None`, and leaves without
    elements (no local crops) are allowed.

    Raises:
      ValueError: the rows do not divide by this process's devices.
    """
    sharding = batch_sharding(mesh)
    local_devices = len(mesh.local_devices)
    processes = mesh.size // local_devices

    def put(path: jax.tree_util.KeyPath, rows: np.ndarray) -> jax.Array:
        rows = np.asarray(rows)
        if rows.ndim == 0 or rows.shape[0] % local_devices:
            name = jax.tree_util.keystr(path)
            raise ValueError(f"batch{name}: found shape {rows.shape}, expected rows divisible by this process's {local_devices} devices")
        shape = (rows.shape[0] * processes, *rows.shape[1:])
        return jax.make_array_from_process_local_data(sharding, rows, shape)

    return jax.tree_util.tree_map_with_path(put, batch)
