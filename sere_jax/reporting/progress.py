"""The progress of a run: a live display or plain lines, TensorBoard, and metrics.jsonl.

Only process 0 prints and writes.
"""

from __future__ import annotations

import contextlib
import datetime
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import TypeVar

import jax
import rich.console
import rich.live
import rich.progress
import rich.text

from sere_jax import buckets
from sere_jax.buckets import Location, is_address, path_of
from sere_jax.reporting import screen
from sere_jax.reporting.alarm import CollapseAlarm
from sere_jax.reporting.display import Panel, duration
from sere_jax.reporting.records import BucketRecords, Records
from sere_jax.reporting.tensorboard import EventFile

Item = TypeVar("Item")

_PLAIN_EVERY_SECONDS = 30.0  # between lines about long work, where there is no terminal
_ANNOUNCED_AFTER_SECONDS = 3.0


class Progress:
    """The console, TensorBoard and `metrics.jsonl` of one run; what `fit` reports to. Use it in a `with`.

    Args:
      directory: the workdir, on a disk or in a bucket; gets `metrics.jsonl` and `tensorboard/`. None = no files.
      total_steps: the last step.
      steps_per_epoch: to show epochs; 0 = show only steps.
      references: metric -> its value when nothing is learned (ln K ...), shown beside it.
      live: whether to redraw a panel in place; None = if standard output is a terminal.
    """

    def __init__(
        self,
        directory: str | None,
        *,
        total_steps: int,
        steps_per_epoch: int = 0,
        references: Mapping[str, float] | None = None,
        live: bool | None = None,
        console: rich.console.Console | None = None,
    ) -> None:
        self._first = jax.process_index() == 0
        self._console = console or screen.stdout()
        self._live_wanted = screen.can_redraw(self._console) if live is None else live
        self._panel = Panel(total_steps, steps_per_epoch, dict(references or {}))
        self._alarm = CollapseAlarm(references or {})
        self._lock = threading.Lock()  # the live display draws from its own thread
        self._live: rich.live.Live | None = None
        self._directory = directory
        self._start: int | None = None  # the step after which training goes on
        self._records: Records | BucketRecords | None = None
        self._events: EventFile | None = None
        self._reported_lost: set[str] = set()  # files that a warning has named

    def __enter__(self) -> Progress:
        if self._first and self._live_wanted:
            self._live = rich.live.Live(get_renderable=self._draw, console=self._console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, step: int) -> None:
        """Open the logs. Training continues after `step`, so entries of later steps are dropped."""
        with self._lock:
            self._panel.start(step)
        if not self._first:
            return
        if self._directory is not None:
            self._start = step
            self._open_records(self._directory)
            self._open_events(self._directory, after=step)
        if step:
            self.note(f"resumed from step {step}")

    def advance(self, step: int) -> None:
        """Record that a step is done. Cheap."""
        with self._lock:
            self._panel.advance(step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write the metrics of one step to the files and the console. Non-finite values are `null` in `metrics.jsonl`.

        Where they show a collapse a line says so, the panel keeps saying it, and the metric `collapse` is 1 as long as it lasts.
        """
        lines = self._alarm.watch(step, values)
        values = {**values, "collapse": 1.0} if self._alarm.active else values
        with self._lock:
            self._panel.warnings = tuple(self._alarm.active.values())
            self._panel.write(step, values)
        for line in lines:
            self.note(line)
        if self._first and self._directory is not None:
            self._write_files(self._directory, step, values)
        if self._first and self._live is None:
            self._say(self._panel.line(step, values))

    def _write_files(self, directory: str, step: int, values: Mapping[str, float]) -> None:
        """Files that could not be opened or written before are tried again, the event file once `metrics.jsonl` takes lines."""
        if self._records is None:
            self._open_records(directory)
        written = False
        if self._records is not None:
            with self._may_fail("metrics.jsonl"):
                self._records.write(step, values)
                written = True
        if self._events is None and written:
            self._open_events(directory, after=step - 1)
        if self._events is not None:
            with self._may_fail("tensorboard"):
                self._events.write(step, values)

    def _open_records(self, directory: str) -> None:
        if self._start is not None and _is_there(path := path_of(directory)):
            with self._may_fail("metrics.jsonl"), buckets.os_errors(directory):
                kind = BucketRecords if is_address(directory) else Records
                self._records = kind(path, after=self._start)

    def _open_events(self, directory: str, after: int) -> None:
        if _is_there(path := path_of(directory)):
            with self._may_fail("tensorboard"):
                self._events = EventFile(path / "tensorboard", after=after)

    def flush(self) -> None:
        """Bring the lines and events so far to where a restart finds them; into a bucket they go only now and then."""
        for name, file in (("metrics.jsonl", self._records), ("tensorboard", self._events)):
            if file is not None:
                with self._may_fail(name):
                    file.flush()

    def note(self, text: str) -> None:
        """Print a line, above the live display."""
        if self._first:
            self._say(text)

    @contextlib.contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """Show that something other than training is running. Plain lines mention it only after a few seconds."""
        began = time.perf_counter()
        with self._lock:
            self._panel.activity = (what, began)
        plain = self._first and self._live is None
        announcement = threading.Timer(_ANNOUNCED_AFTER_SECONDS, self._say, [f"{what} ..."])
        announcement.daemon = True
        if plain:
            announcement.start()
        try:
            yield
        finally:
            announcement.cancel()
            with self._lock:
                self._panel.activity = None
            seconds = time.perf_counter() - began
            if plain and seconds > _ANNOUNCED_AFTER_SECONDS:
                self._say(f"{what} took {seconds:.1f} s")

    def close(self) -> None:
        """Stop the display, leaving its last state on the screen, and close the files."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        for name, file in (("metrics.jsonl", self._records), ("tensorboard", self._events)):
            if file is not None:
                with self._may_fail(name):
                    file.close()
        self._records, self._events = None, None

    @contextlib.contextmanager
    def _may_fail(self, name: str) -> Iterator[None]:
        """Continue when a log cannot be written (a full or missing disk), with one warning for each file."""
        try:
            yield
        except OSError as error:
            if name == "tensorboard":
                self._events = None  # a record may be incomplete, and readers stop there
            if name not in self._reported_lost:
                self._reported_lost.add(name)
                self.note(
                    f"warning: {name} cannot be written ({error.strerror or error}); training continues, and some of its lines may be lost"
                )

    def _draw(self) -> rich.console.RenderableType:
        with self._lock:
            return self._panel.draw(self._console.width)

    def _say(self, text: str) -> None:
        if self._live is None:
            _stamped(self._console, text)
        else:
            self._console.print(rich.text.Text(text), soft_wrap=True, highlight=False)


def _is_there(directory: Location) -> bool:
    """Whether a workdir can be written below; one on a disk that vanished is not made again."""
    return is_address(directory) or directory.is_dir()


def track(items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items and show the progress and the time left: as a bar on a terminal, elsewhere as a line now and then.

    Args:
      items: the items to process.
      label: describes the work.
      total: number of items, if they have no `len`.
    """
    count = total if total is not None else (len(items) if isinstance(items, Sized) else None)
    if jax.process_index() != 0:
        yield from items
        return
    console = screen.stdout()
    if screen.can_redraw(console):
        columns = (
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeRemainingColumn(),
        )
        with rich.progress.Progress(*columns, console=console, transient=True) as bars:
            yield from bars.track(items, total=count, description=label)
        return
    _stamped(console, label + (f": 0 of {count}" if count else ""))
    began = last_line = time.perf_counter()
    for done, item in enumerate(items, 1):
        yield item
        now = time.perf_counter()
        if now - last_line >= _PLAIN_EVERY_SECONDS:
            last_line = now
            left = f" of {count}, {duration((now - began) / done * (count - done))} left" if count else ""
            _stamped(console, f"{label}: {done}{left}")


def _stamped(console: rich.console.Console, text: str) -> None:
    # No markup and no wrapping, so that log lines can be searched.
    console.print(rich.text.Text(f"{datetime.datetime.now():%H:%M:%S} {text}"), soft_wrap=True, highlight=False)
