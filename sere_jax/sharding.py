"""The device mesh, the sharding of the state and of batches, and global arrays from host batches.

There is one mesh with two axes, `data` and `fsdp`. A batch is sharded over both; parameters, teacher and optimizer moments
are sharded over `fsdp` only. All computations are `jax.jit` with `NamedSharding`, and the compiler inserts
the collectives, but for those of gradients (`train.crossing`) and of BatchNorms (`ops.normalise`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

PyTree = Any

# Smaller leaves are replicated, because gathering them would take longer than their memory is worth.
MIN_SHARDED_SIZE = 2**14


def make_mesh(fsdp: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh ('data', 'fsdp') over all devices of all processes, or over those given; the devices of process 0 first.

    `jax.make_mesh` may interleave the devices of several hosts to suit the network. Here the order must be that of the
    processes, because random numbers depend on the row of an example in the global batch. The `fsdp` groups, which
    communicate most, then lie within one host.

    Raises:
      ValueError: `fsdp` does not divide the number of devices.
    """
    devices = sorted(jax.devices() if devices is None else devices, key=lambda device: (device.process_index, device.id))
    count = len(devices)
    if fsdp < 1 or count % fsdp:
        divisors = [size for size in range(1, count + 1) if count % size == 0]
        nearest = min(divisors, key=lambda size: abs(size - fsdp))
        raise ValueError(f"run.fsdp: found {fsdp}, expected a divisor of the {count} devices {divisors}; nearest: {nearest}")
    grid = np.array(devices).reshape(count // fsdp, fsdp)
    return Mesh(grid, ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: axis 0 over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of values that every device holds."""
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

    The rule depends only on shapes, so a parameter, its teacher and its optimizer moments are always sharded alike.
    """
    return jax.tree.map(lambda leaf: leaf_sharding(tuple(leaf.shape), mesh, min_size), abstract_state)


def to_global(batch: PyTree, mesh: Mesh) -> PyTree:
    """This process's rows of a batch (NumPy, axis 0 = examples) -> global `jax.Array`s sharded over all devices.

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
