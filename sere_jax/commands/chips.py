"""What devices can do at best: operations a second, memory and its speed, links to other chips."""

from __future__ import annotations

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Chip(NamedTuple):
    """The peak figures of one chip, from its maker's data sheet."""

    names: tuple[str, ...]  # beginnings of `Device.device_kind`, and of topologies
    operations: float  # dense bfloat16 operations a second
    memory: float  # bytes
    bandwidth: float  # bytes a second of its memory
    links: float  # bytes a second to other chips of its slice or machine, all links together


GIB = 2**30

# The first whose name begins the device's kind is taken, so longer names stand before shorter ones.
CHIPS = (
    Chip(("TPU v6 lite", "TPU v6e", "v6e"), 918e12, 32 * GIB, 1640e9, 448e9),
    Chip(("TPU v5 lite", "TPU v5e", "v5e"), 197e12, 16 * GIB, 819e9, 200e9),
    Chip(("TPU v5p", "TPU v5", "v5p"), 459e12, 95 * GIB, 2765e9, 600e9),
    Chip(("TPU v4", "v4"), 275e12, 32 * GIB, 1228e9, 300e9),
    Chip(("NVIDIA B200",), 2250e12, 180 * GIB, 8000e9, 1800e9),
    Chip(("NVIDIA H200",), 989e12, 141 * GIB, 4800e9, 900e9),
    Chip(("NVIDIA H100",), 989e12, 80 * GIB, 3350e9, 900e9),
    Chip(("NVIDIA A100",), 312e12, 40 * GIB, 1555e9, 600e9),
    Chip(("NVIDIA L4",), 121e12, 24 * GIB, 300e9, 64e9),
)


def chip(kind: str) -> Chip | None:
    """The chip of a `Device.device_kind`, or None for others: CPUs and chips that the table lacks.

    >>> chip("TPU v5 lite").operations, chip("NVIDIA H100 80GB HBM3").bandwidth, chip("cpu")
    (197000000000000.0, 3350000000000.0, None)
    """
    return next((entry for entry in CHIPS if kind.startswith(entry.names)), None)


class Peak(NamedTuple):
    """The most operations a second of all devices together, and where the number is from."""

    operations: float
    origin: str


def peak(devices: int) -> Peak:
    """The peak of that many devices of this machine's kind.

    That of the data sheet in bfloat16, or a matrix product's measured rate. The CPU's fake devices share its cores, so they count as one.
    """
    device = jax.local_devices()[0]
    if known := chip(device.device_kind):
        return Peak(known.operations * devices, f"{known.operations / 1e12:.0f} TFLOP/s a chip in bfloat16, by its data sheet")
    rate = measured_peak(1024 if device.platform == "cpu" else 8192, jnp.float32 if device.platform == "cpu" else jnp.bfloat16)
    count = 1 if device.platform == "cpu" else devices
    return Peak(rate * count, f"{rate / 1e9:.0f} GFLOP/s, measured here by a matrix product")


def measured_peak(size: int, dtype: jnp.dtype | type, rounds: int = 3) -> float:
    """Operations a second of the product of two square matrices, the best of some rounds."""
    operand = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a: a @ a)
    jax.block_until_ready(product(operand))
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        jax.block_until_ready(product(operand))
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds)
