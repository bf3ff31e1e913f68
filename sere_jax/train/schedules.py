"""Schedules: functions from the step (traced integer or NumPy array) to a value, with the end points of the reference code."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from sere_jax.types import Schedule


def cosine(start: float, end: float, steps: int) -> Schedule:
    """end + (start - end) (1 + cos(pi i / steps)) / 2: `start` at step 0, almost `end` at the last step."""

    def value(step: jax.Array) -> jax.Array:
        return end + 0.5 * (start - end) * (1.0 + jnp.cos(jnp.pi * jnp.asarray(step, jnp.float32) / max(steps, 1)))

    return value


def linear(start: float, end: float, steps: int) -> Schedule:
    """start + (end - start) i / steps, and `end` from step `steps` on: `polynomial` of power 1."""
    return polynomial(start, end, steps, power=1.0)


def polynomial(start: float, end: float, steps: int, *, power: float) -> Schedule:
    """end + (start - end) (1 - i / steps)^power, and `end` from step `steps` on. Source: DeepLab's "poly" rule has power 0.9.

    >>> float(polynomial(1.0, 0.0, 4, power=2.0)(jnp.int32(2)))
    0.25
    """

    def value(step: jax.Array) -> jax.Array:
        remaining = 1.0 - jnp.clip(jnp.asarray(step, jnp.float32) / max(steps, 1), 0.0, 1.0)
        return end + (start - end) * remaining**power

    return value


def steps_down(start: float, factor: float, milestones: Sequence[int]) -> Schedule:
    """`start`, multiplied by `factor` at each of the steps `milestones`: the "step" schedule of detection and linear probes.

    >>> [round(float(steps_down(1.0, 0.1, (2, 3))(jnp.int32(i))), 6) for i in range(4)]
    [1.0, 1.0, 0.1, 0.01]
    """

    def value(step: jax.Array) -> jax.Array:
        passed = sum((jnp.asarray(step) >= milestone for milestone in milestones), jnp.zeros(()))
        return start * jnp.float32(factor) ** passed

    return value


def warmup_cosine(peak: float, end: float, *, warmup_steps: int, steps: int, inclusive: bool = True) -> Schedule:
    """Linear from 0 to `peak` in `warmup_steps`; then `cosine` to `end` over the rest of `steps`.

    With `inclusive` the last step of the warm-up has the peak, and so has the step after it (DINO, iBOT). Otherwise step i has
    peak i / warmup_steps, and only the step after the warm-up has the peak (MoCo v3, MAE).
    """
    last = warmup_steps - 1 if inclusive else warmup_steps
    decay = cosine(peak, end, steps - warmup_steps)

    def value(step: jax.Array) -> jax.Array:
        step = jnp.asarray(step)
        return jnp.where(step < warmup_steps, peak * step / max(last, 1), decay(step - warmup_steps))

    return value


def linear_by_epoch(start: float, end: float, *, epochs: int, steps_per_epoch: int, start_epoch: int = 0) -> Schedule:
    """The warm-up of the teacher's temperature: `start` before `start_epoch`, then `linspace(start, end, epochs)` by epoch, then `end`."""

    def value(step: jax.Array) -> jax.Array:
        epoch = jnp.asarray(step) // steps_per_epoch - start_epoch
        fraction = jnp.clip(epoch / max(epochs - 1, 1), 0.0, 1.0)
        return jnp.where((epoch < epochs) | (epoch < 0), start + (end - start) * fraction, end)

    return value


def every(schedule: Schedule, stride: int) -> Schedule:
    """Read a schedule of micro-batches once in each window of `stride` micro-batches, at the first of the window."""
    return lambda step: schedule(jnp.asarray(step) * stride)
