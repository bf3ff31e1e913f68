"""A trace of some steps of a run, which xprof and Perfetto open."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

import jax
from etils import epath

from sere_jax import buckets
from sere_jax.buckets import Location
from sere_jax.train.meter import Meter, Reporter


@dataclass(frozen=True)
class TracedSteps:
    """Which steps are traced, and where the trace goes.

    Attributes:
      first: the first of them; 0 = the second step after each start, which neither compiles nor warms up.
      count: how many; 0 = no trace.
      directory: gets `plugins/profile/TIME/`, on a disk or in a bucket.
    """

    first: int
    count: int
    directory: Location


class Tracer:
    """Starts and stops JAX's profiler around the planned steps. Use it in a `with`; only process 0 traces."""

    def __init__(self, plan: TracedSteps | None, start: int, meter: Meter, progress: Reporter) -> None:
        self._plan = plan if plan and plan.count and jax.process_index() == 0 else None
        self._first = (self._plan.first or start + 2) if self._plan else 0
        self._meter, self._progress, self._running = meter, progress, False
        if self._plan and self._first <= start:
            progress.note(f"no trace: step {self._first} is done, the run goes on from step {start}")

    def __enter__(self) -> Tracer:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Run a step inside, traced if it is one of the planned ones."""
        if self._plan is None:
            yield
            return
        if number == self._first + self._plan.count:
            self._stop()
        if number == self._first:
            self._meter.wait()
            with self._meter.paused():
                jax.profiler.start_trace(str(buckets.scratch_directory() / "trace"))
            self._running = True
        with jax.profiler.StepTraceAnnotation("step", step_num=number) if self._running else contextlib.nullcontext():
            yield

    def _stop(self) -> None:
        if not self._running or self._plan is None:
            return
        self._running = False
        self._meter.wait()
        written = buckets.scratch_directory() / "trace"  # JAX could not take another trace after one that it cannot write
        try:
            with self._meter.paused():
                jax.profiler.stop_trace()
                if isinstance(self._plan.directory, epath.Path):
                    buckets.put_tree(written, self._plan.directory)
                else:
                    shutil.copytree(written, self._plan.directory, dirs_exist_ok=True)
        except (OSError, RuntimeError) as error:  # a trace may be lost, as logs may
            self._progress.note(f"warning: the trace of the steps from {self._first} cannot be written to {self._plan.directory} ({error})")
            return
        finally:
            shutil.rmtree(written, ignore_errors=True)
        self._progress.note(f"trace of the steps from {self._first} is in {self._plan.directory}; xprof and ui.perfetto.dev open it")
