"""The appearance of a run on the screen: the panel of the live display, and plain lines."""

from __future__ import annotations

import collections
import math
import time
from collections.abc import Mapping, Sequence

import rich.box
import rich.console
import rich.progress_bar
import rich.table
import rich.text

from sere_jax.reporting.kinds import kind_of, verdict_colour

_TRACE = 24  # values in the small curve beside a loss
_BLOCKS = "▁▂▃▄▅▆▇█"
_SPEED = ("speed/images_per_second", "speed/data_wait", "speed/mfu")  # what a line begins with
_MACHINE = ("speed/", "memory/")  # the others of these are left out of plain lines
_RANDOM = "/random"  # ends the name of a metric at random initialisation
_QUIET = ("bad_steps", "data/replaced")  # left out of plain lines while they are 0


class Panel:
    """The latest metrics of a run and its step. It does no I/O and takes no locks; the caller must serialise the calls."""

    def __init__(self, total_steps: int, steps_per_epoch: int, references: Mapping[str, float]) -> None:
        self._total_steps, self._steps_per_epoch, self._references = total_steps, steps_per_epoch, references
        self._step, self._started = 0, time.perf_counter()
        self._values: dict[str, tuple[float, int]] = {}
        self._traces: dict[str, collections.deque[float]] = collections.defaultdict(lambda: collections.deque(maxlen=_TRACE))
        self._since: tuple[float, int] | None = None
        self.activity: tuple[str, float] | None = None
        self.warnings: tuple[str, ...] = ()  # causes of a collapse

    def start(self, step: int) -> None:
        """Training starts after this step."""
        self._step, self._since, self._started = step, None, time.perf_counter()

    def advance(self, step: int) -> None:
        """Record that a step is done. The time left is estimated from the first step on, so compilation does not count."""
        self._step = step
        if self._since is None:
            self._since = (time.perf_counter(), step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record the metrics of a step. The value of `NAME/random` is shown as that of NAME when nothing has been learned."""
        for name, value in values.items():
            if name.endswith(_RANDOM):
                self._references = {**self._references, name.removesuffix(_RANDOM): value}
                continue
            self._values[name] = (value, step)
            self._traces[name].append(value)

    def line(self, step: int, values: Mapping[str, float]) -> str:
        """One plain line: step, speed, then each metric, with its value when nothing is learned in brackets."""
        words = [*self._place(step), *self._speed()]
        for name in self._order(values):
            if name.startswith(_MACHINE) or (name in _QUIET and not values[name]):
                continue
            reference = f" ({_number(self._references[name])})" if name in self._references else ""
            words.append(f"{name} {_number(values[name])}{reference}")
        words += [f"COLLAPSE: {warning}" for warning in self.warnings]
        return "  ".join(words)

    def draw(self, width: int) -> rich.console.RenderableType:
        """The live picture: progress, metrics beside their values when nothing is learned, then the others, coloured by kind."""
        parts: list[rich.console.RenderableType] = [self._progress(width)]
        parts += [rich.text.Text(f"COLLAPSE: {warning}", style="bold red") for warning in self.warnings]
        referenced = [name for name in self._references if name in self._values]
        if referenced:
            parts.append(self._beside_references(referenced))
        others = [name for name in self._order(self._values) if name not in self._references]
        if others:
            parts.append(self._others(others, width))
        return rich.console.Group(*parts)

    def _order(self, values: Mapping[str, object]) -> list[str]:
        """Metrics with a reference in the objective's order, then the others, without those that the line begins with."""
        first = [name for name in self._references if name in values]
        return first + [name for name in values if name not in self._references and name not in _SPEED and not name.endswith(_RANDOM)]

    def _place(self, step: int) -> list[str]:
        words = [f"step {step:,}/{self._total_steps:,}"]
        if self._steps_per_epoch:
            words.append(f"epoch {step / self._steps_per_epoch:.2f}/{self._total_steps / self._steps_per_epoch:.4g}")
        left = self._seconds_left()
        words.append("" if left is None else f"{duration(left)} left")
        return [word for word in words if word]

    def _speed(self) -> list[str]:
        last = [self._values[name][0] if name in self._values else math.nan for name in _SPEED]
        images, wait, mfu = last
        if math.isnan(images):
            return []
        words = [f"{images:,.0f} images/s" if images >= 10 else f"{images:.2f} images/s", f"waiting for data {wait:.0%}"]
        return words if math.isnan(mfu) else [*words, f"MFU {mfu:.1%}"]

    def _seconds_left(self) -> float | None:
        """Estimated from the mean speed since the first step, including evaluations and saving, which will happen again."""
        if self._since is None or self._step <= self._since[1]:
            return None
        began, first = self._since
        return (time.perf_counter() - began) / (self._step - first) * (self._total_steps - self._step)

    def _progress(self, width: int) -> rich.console.RenderableType:
        words = rich.text.Text("  ".join([*self._place(self._step), *self._speed()]))
        what, began = self.activity or (("before the first step", self._started) if self._since is None else ("", 0.0))
        if what:
            words.append(f"  {what} ({time.perf_counter() - began:.0f} s)", style="yellow")
        rows = rich.table.Table.grid()
        rows.add_row(rich.progress_bar.ProgressBar(total=self._total_steps, completed=self._step, width=max(10, min(width, 100) - 2)))
        rows.add_row(words)
        return rows

    def _beside_references(self, names: Sequence[str]) -> rich.table.Table:
        table = rich.table.Table(box=rich.box.SIMPLE, pad_edge=False)
        table.add_column("metric")
        for header in ("now", "nothing learned", "difference"):
            table.add_column(header, justify="right")
        table.add_column("")
        for name in names:
            value, reference = self._values[name][0], self._references[name]
            difference = rich.text.Text(f"{value - reference:+.3f}", style=verdict_colour(name, value, reference))
            colour = kind_of(name).colour
            curve = rich.text.Text(_curve(self._traces[name]), style=colour)
            table.add_row(rich.text.Text(name, style=colour), _number(value), _number(reference), difference, curve)
        return table

    def _others(self, names: Sequence[str], width: int) -> rich.table.Table:
        newest = max(step for _, step in self._values.values())
        columns = max(1, min(3, width // 40))
        grid = rich.table.Table.grid(padding=(0, 2))
        for _ in range(columns):
            grid.add_column()
            grid.add_column(justify="right")
        cells: list[str | rich.text.Text] = []
        for name in names:
            value, step = self._values[name]
            shown = rich.text.Text(_number(value) + (f" (step {step:,})" if step != newest else ""))
            kind = kind_of(name)
            if kind.name == "fault" and value:
                shown.stylize(f"bold {kind.colour}")
            cells += [rich.text.Text(name, style=kind.colour if kind.name != "fault" or value else "dim"), shown]
        for start in range(0, len(cells), 2 * columns):
            grid.add_row(*cells[start : start + 2 * columns])
        return grid


def duration(seconds: float) -> str:
    """`0:03:07`, `2d 04:00:00`."""
    days, rest = divmod(round(seconds), 86400)
    hours, rest = divmod(rest, 3600)
    return f"{days}d {hours:02}:{rest // 60:02}:{rest % 60:02}" if days else f"{hours}:{rest // 60:02}:{rest % 60:02}"


def _number(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 else f"{value:.3g}"


def _curve(values: Sequence[float]) -> str:
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((value - low) * scale)] for value in finite)
