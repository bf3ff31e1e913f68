"""What a running training tells: means of metrics, speed, bad steps, bad images; and when the last two are too many."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp

from sere_jax.train.goodput import Goodput
from sere_jax.train.watchdog import Watchdog

Metrics = Mapping[str, jax.Array]
OnBad: TypeAlias = Callable[[int], None] | None  # is told of each step that was skipped

# Steps that may be under way before the host waits for the oldest: the device always has work, and batches do not pile up.
_RUN_AHEAD = 2
# Shares are judged over at least so many images and steps: one bad file in the first batch is no reason to end.
_FEWEST_IMAGES = 1000
_FEWEST_STEPS = 1000


@dataclasses.dataclass(frozen=True)
class Limits:
    """How much a run bears before it ends.

    Attributes:
      bad_steps: steps in a row that are skipped for a non-finite loss or gradient.
      bad_step_share: such steps as a share of all steps of the run, judged over at least 1000.
      bad_image_share: unreadable images as a share of all images since this start, judged over at least 1000.
      stuck_seconds: of a step, after which the stacks of all threads are printed, and at twice that the process ends; 0 = never.
    """

    bad_steps: int = 10
    bad_step_share: float = 0.01
    bad_image_share: float = 0.01
    stuck_seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Work:
    """What a step computes, for the figures of its speed.

    Attributes:
      images: of all processes together.
      operations: floating-point operations that the step needs; 0 = unknown.
      peak: the most operations a second that all devices can do; 0 = unknown.
      devices: over which the images are divided.
    """

    images: int
    operations: float = 0.0
    peak: float = 0.0
    devices: int = 1

    def speed(self, seconds: float) -> dict[str, float]:
        """The metrics of a step of so many seconds. `speed/mfu` is the share of the peak that the needed operations are (MFU).

        >>> Work(images=8, operations=6e9, peak=3e10, devices=2).speed(0.5)
        {'speed/images_per_second': 16.0, 'speed/images_per_second_per_device': 8.0, 'speed/mfu': 0.4}
        """
        rate = self.images / seconds
        speed = {"speed/images_per_second": rate, "speed/images_per_second_per_device": rate / self.devices}
        return speed | ({"speed/mfu": self.operations / seconds / self.peak} if self.operations and self.peak else {})


class TooManyBadSteps(RuntimeError):
    """More steps were skipped for a non-finite loss or gradient than is allowed."""


class TooManyBadImages(RuntimeError):
    """More images were unreadable, and replaced by others, than is allowed."""


@runtime_checkable
class Reporter(Protocol):
    """Who is told what happens; `progress.Progress` is one."""

    def start(self, step: int) -> None:
        """Training goes on after `step`; what was reported of later steps is void."""

    def advance(self, step: int) -> None:
        """A step is done."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Values of a step; called once a step at most."""

    def flush(self) -> None:
        """A checkpoint follows: what was written so far has to be where a restart finds it."""

    def note(self, text: str) -> None:
        """Something for a person to read."""

    def busy(self, what: str) -> contextlib.AbstractContextManager[None]:
        """Something other than training takes its time."""


class Meter:
    """Means of metrics over the steps since the last log, summed on the device, and the clock of the same steps."""

    def __init__(self, start: int, work: Work, progress: Reporter, limits: Limits, bad_steps: int, on_bad: OnBad = None) -> None:
        self._start, self._work, self._progress, self._limits = start, work, progress, limits
        self._on_bad = on_bad
        self._bad_steps, self._bad_in_a_row, self._replaced = bad_steps, 0, 0
        self._sums: Any = None
        self._pending: collections.deque[tuple[int, jax.Array, Any]] = collections.deque()
        self._held: tuple[int, dict[str, float]] | None = None
        self._began = self._last_done = 0.0
        self.step = start  # the last one that was dispatched
        self.watchdog = Watchdog(limits.stuck_seconds)  # to be used around the steps
        self.goodput: Goodput | None = None  # is told which steps are done
        self._seconds = 0.0  # in steps before this window, since this start
        self._restart_clock()

    def add(self, step: int, metrics: Metrics, replaced: jax.Array | None, due: bool) -> None:
        """Count a step that was just dispatched; `due` closes the window. Waits for the step before the last two."""
        self.step = step
        self.watchdog.step(step)
        self._sums, bad = _accumulate(self._sums, dict(metrics), replaced)
        sums = None
        if due:
            sums, self._sums = self._sums, None
        for scalar in jax.tree.leaves((bad, sums)):
            scalar.copy_to_host_async()
        self._pending.append((step, bad, sums))
        if step == self._start + 1:  # compilation and the first batch are not the speed of training
            jax.block_until_ready(bad)
            self._progress.note(f"first step after {time.perf_counter() - self._began:.1f} s")
            if self.goodput and (line := self.goodput.first_step()):
                self._progress.note(line)
            self._restart_clock()
            self._steps = -1
        while len(self._pending) > _RUN_AHEAD:
            self._finish_oldest()

    def seconds_in_steps(self) -> float:
        """Seconds since the first step of this start, without evaluations and saving."""
        return self._seconds + (time.perf_counter() - self._began)

    def device_busy(self) -> bool:
        """Whether the last dispatched step is still under way."""
        return bool(self._pending) and not self._pending[-1][1].is_ready()  # type: ignore[attr-defined]

    def wait(self, keep_last: bool = False) -> None:
        """Until every dispatched step is done, counted and reported (the last one's values may be kept for `emit`)."""
        while self._pending:
            self._finish_oldest(hold=keep_last and len(self._pending) == 1)

    def emit(self, step: int, values: Mapping[str, float]) -> None:
        """Report the values of a step together with those that `wait` kept."""
        last = self._held[1] if self._held else {}
        self._held = None
        if last or values:
            self._progress.write(step, {**last, **values})

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The clock stands still."""
        began = time.perf_counter()
        try:
            with self.watchdog.paused():
                yield
        finally:
            pause = time.perf_counter() - began
            self._began, self._last_done = self._began + pause, self._last_done + pause

    def _restart_clock(self) -> None:
        self._began = self._last_done = time.perf_counter()
        self._steps, self.data_wait = 0, 0.0
        self._step_seconds: list[float] = []

    def _finish_oldest(self, hold: bool = False) -> None:
        step, bad, sums = self._pending.popleft()
        self._bad_steps += int(bad)
        self._steps += 1
        now = time.perf_counter()
        self._step_seconds.append(now - self._last_done)
        self._last_done = now
        self._progress.advance(step)
        if sums is not None:
            values = self._values(step, sums)
            if hold:
                self._held = (step, values)
            else:
                self._progress.write(step, values)
            self._check_images(step)
        self._bad_in_a_row = self._bad_in_a_row + 1 if int(bad) else 0
        if int(bad):
            if self._on_bad:
                self._on_bad(step)
            self._check_steps(step)

    def _check_steps(self, step: int) -> None:
        limits, reason = self._limits, ""
        if self._bad_in_a_row > limits.bad_steps:
            reason = f"{self._bad_in_a_row} steps in a row had; run.max_bad_steps allows {limits.bad_steps}"
        elif self._bad_steps > limits.bad_step_share * max(step, _FEWEST_STEPS):
            reason = f"{self._bad_steps} of {step} steps had; run.max_bad_share allows {limits.bad_step_share:g}"
        if reason:
            raise TooManyBadSteps(
                f"step {step} had a non-finite loss or gradient, and {reason}. These steps were skipped: parameters, teacher and "
                "checkpoints are finite. Usual causes: too high a learning rate, too short a warm-up, too low a temperature, broken inputs."
            )

    def _values(self, step: int, sums: Mapping[str, Any]) -> dict[str, float]:
        totals = {name: float(value) for name, value in jax.device_get(sums).items()}
        good, replaced = totals.pop("/good"), totals.pop("/replaced", None)
        values = {name: total / good if good else float("nan") for name, total in totals.items() if name != "bad_step"}
        values["bad_steps"] = float(self._bad_steps)
        if replaced is not None:
            self._replaced += int(replaced)
            values["data/replaced"] = float(self._replaced)
        seconds = time.perf_counter() - self._began
        if self._steps > 0:
            values |= self._work.speed(seconds / self._steps)
            values["speed/seconds_per_step"] = seconds / self._steps
            values |= percentiles(self._step_seconds[-self._steps :])
            values["speed/data_wait"] = min(1.0, self.data_wait / seconds)
        self._seconds += seconds
        if self.goodput:
            self.goodput.alive(step, self._seconds)
            values["speed/goodput"] = self.goodput.share()
        self._restart_clock()
        return values | peak_memory()

    def _check_images(self, step: int) -> None:
        seen = (step - self._start) * self._work.images
        if self._replaced > self._limits.bad_image_share * max(seen, _FEWEST_IMAGES):
            raise TooManyBadImages(
                f"{self._replaced} of {seen} images since this start were unreadable; max_bad_fraction allows "
                f"{self._limits.bad_image_share:g}. Look for the files that the log names, or raise the limit."
            )


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """The median and the 95th percentile of the steps' times, as metrics: a slow step now and then moves the second alone.

    >>> percentiles([0.2] * 19 + [0.9])
    {'speed/seconds_p50': 0.2, 'speed/seconds_p95': 0.2}
    >>> percentiles([0.2] * 9 + [0.9])
    {'speed/seconds_p50': 0.2, 'speed/seconds_p95': 0.9}
    """
    ordered, count = sorted(seconds), len(seconds)
    return {f"speed/seconds_p{share}": ordered[-(-share * count // 100) - 1] for share in (50, 95)}


def peak_memory() -> dict[str, float]:
    """The most memory in use since the start, GiB, as metrics: of this process, and of its fullest device where the device tells it."""
    devices = [stats.get("peak_bytes_in_use", 0) for device in jax.local_devices() if (stats := device.memory_stats())]
    memory = {"memory/device_peak_gib": max(devices) / 2**30} if devices else {}
    if sys.platform != "win32":
        import resource

        # In KiB, on macOS in bytes.
        unit = 2**30 if sys.platform == "darwin" else 2**20
        memory["memory/host_peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return memory


@jax.jit
def _accumulate(sums: dict[str, jax.Array] | None, metrics: dict[str, jax.Array], replaced: jax.Array | None) -> Any:
    """(new sums, whether this step was bad). Bad steps count nothing into the sums: one NaN would spoil the window."""
    bad = jnp.asarray(metrics.get("bad_step", 0.0)) > 0
    new = {name: jnp.where(bad, 0.0, jnp.asarray(value, jnp.float32)) for name, value in metrics.items()}
    new["/good"] = jnp.where(bad, 0.0, 1.0)
    if replaced is not None:
        new["/replaced"] = jnp.sum(replaced, dtype=jnp.int32)
    return (new if sums is None else jax.tree.map(jnp.add, sums, new)), bad
