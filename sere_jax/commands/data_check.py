"""Read and decode every image of a source once: python -m sere_jax check --source=folder:DIR [--json=FILE]

Lists what a run would replace and why, and tells sizes and classes. Exit code 0: everything can be read; 1: something
cannot; 2: the source cannot be opened.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import functools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import rich.console
import rich.markup
import rich.table

from sere_jax.data.images.decode import BadImage, decode
from sere_jax.data.images.reading import BACKENDS, BY_TYPE, DEFAULT_READING, MAX_PIXELS, ImageReading
from sere_jax.data.sources.open import Source, open_source
from sere_jax.reporting import screen
from sere_jax.writing import destination, place, replacing, writing_to

_SHOWN = 20  # unreadable images in the table; the JSON has all


class Checked(NamedTuple):
    """One image: `position` in the source; `error` is empty where it could be read; sizes are in pixels and bytes, 0 where unknown."""

    position: int
    name: str
    label: int
    size: int
    height: int
    width: int
    error: str


class Report(NamedTuple):
    """What was found in a source of `images` images."""

    source: str
    images: int
    bad: list[Checked]
    good: list[Checked]
    classes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values: counts, quantiles of sizes, and every unreadable image."""
        per_class = self.per_class()
        return {
            "source": self.source,
            "images": self.images,
            "unreadable": len(self.bad),
            "bytes": sum(item.size for item in self.good),
            "shorter_side": _quantiles(min(item.height, item.width) for item in self.good),
            "longer_side": _quantiles(max(item.height, item.width) for item in self.good),
            "kilobytes": _quantiles(item.size / 1000 for item in self.good),
            "classes": len(self.classes),
            "readable_per_class": {"fewest": min(per_class, default=0), "most": max(per_class, default=0)},
            "errors": [{"index": item.position, "name": _printable(item.name), "error": item.error} for item in self.bad],
        }

    def per_class(self) -> list[int]:
        """Readable images of each class."""
        counts = collections.Counter(item.label for item in self.good)
        return [counts[label] for label in range(len(self.classes))]


def check(
    source: Source,
    reading: ImageReading = DEFAULT_READING,
    *,
    workers: int = 1,
    track: Callable[[Iterable[Checked]], Iterable[Checked]] = iter,
) -> Report:
    """Read and decode every image of `source` with `workers` threads; `track` is handed the results as they come, for a display."""
    look = functools.partial(_look, source, reading)
    checked = list(track(_in_order(look, len(source), workers)))
    return Report(
        source.spec, len(source), [item for item in checked if item.error], [item for item in checked if not item.error], source.classes
    )


def _look(source: Source, reading: ImageReading, index: int) -> Checked:
    name, label, size = f"item {index}", -1, 0
    try:
        name, data, label, _ = source[index]
        size = len(data)
        height, width = decode(data, reading).shape[:2]
    except (BadImage, OSError) as error:
        return Checked(index, name, label, size, 0, 0, str(error))
    return Checked(index, name, label, size, height, width, "")


def _in_order(look: Callable[[int], Checked], count: int, workers: int) -> Iterator[Checked]:
    """The images in order, a few ahead: `Executor.map` would hold a future for each of millions."""
    pending: collections.deque[concurrent.futures.Future[Checked]] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(workers) as threads:
        for index in range(count):
            pending.append(threads.submit(look, index))
            if len(pending) > 4 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _quantiles(values: Iterable[float]) -> dict[str, float]:
    array = np.fromiter(values, float)
    if not len(array):
        return {}
    return {name: round(float(np.quantile(array, q)), 1) for name, q in (("least", 0), ("median", 0.5), ("95 %", 0.95), ("most", 1))}


def _amount(count: int) -> str:
    """Bytes in the largest unit of which there is at least one, to three digits."""
    for factor, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= 0.9995 * factor:  # 999.5 kB and more would be rounded to 1e+03
            return f"{count / factor:,.3g} {unit}"
    return f"{count} bytes"


def _printable(name: str) -> str:
    """Names as they are, but for what no terminal or JSON file can hold."""
    return name if name.isprintable() else ascii(name)[1:-1]


def show(report: Report, console: rich.console.Console) -> None:
    """The report as tables for a person."""
    facts = report.as_json()
    table = rich.table.Table(title=rich.markup.escape(report.source), title_justify="left", show_header=False)
    table.add_row("images", f"{report.images:,}, {_amount(facts['bytes'])}{' in the readable ones' if report.bad else ''}")
    table.add_row(
        "unreadable", f"{len(report.bad):,} ({len(report.bad) / max(1, report.images):.2%})", style="bold red" if report.bad else "green"
    )
    for key, name in (("shorter_side", "shorter side, pixels"), ("longer_side", "longer side, pixels"), ("kilobytes", "file, kB")):
        table.add_row(name, ", ".join(f"{quantile} {value:g}" for quantile, value in facts[key].items()))
    if report.classes:
        spread = facts["readable_per_class"]
        table.add_row("classes", f"{len(report.classes):,}, of {spread['fewest']:,} to {spread['most']:,} readable images")
    console.print(table)
    if not report.bad:
        return
    bad = rich.table.Table("image", "why it cannot be read")
    for item in report.bad[:_SHOWN]:
        bad.add_row(rich.markup.escape(_printable(item.name)), rich.markup.escape(item.error))
    if len(report.bad) > _SHOWN:
        bad.add_row("...", f"{len(report.bad) - _SHOWN} more; --json=FILE writes all")
    console.print(bad)


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; its exit code."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the display asks JAX which process this is; no accelerator is needed for that
    from sere_jax.reporting.progress import track

    parser = argparse.ArgumentParser(prog="python -m sere_jax check", description=__doc__.splitlines()[0])
    parser.add_argument("--source", required=True, help="as data.source of a config")
    parser.add_argument("--backend", choices=BACKENDS, default="fast", help="decoder, as data.backend of a config (default: fast)")
    parser.add_argument("--max_pixels", type=int, default=MAX_PIXELS, help="images of more pixels are refused")
    parser.add_argument("--channels", type=int, default=3, help="as model.in_channels of a config")
    parser.add_argument("--value_range", type=float, nargs=2, default=BY_TYPE, metavar=("LOW", "HIGH"), help="as data.value_range")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="threads")
    parser.add_argument(
        "--json", default="", metavar="FILE", help="write the whole report here; - is standard output, and then nothing else"
    )
    flags = parser.parse_args(arguments)
    try:
        reading = ImageReading(flags.backend, flags.max_pixels, flags.channels, tuple(flags.value_range))
        source = open_source(flags.source)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    quiet = flags.json == "-"
    if flags.json and not quiet:
        with writing_to(destination(flags.json).parent):
            pass  # a directory that cannot be written to is told before the images are read
    report = check(
        source,
        reading,
        workers=max(1, flags.workers),
        track=iter if quiet else functools.partial(track, label="reading", total=len(source)),
    )
    text = json.dumps(report.as_json(), indent=2)
    if quiet:
        print(text)
    else:
        show(report, screen.stdout())
    if flags.json and not quiet:
        with writing_to(destination(flags.json).parent), replacing(place(flags.json)) as temporary:
            temporary.write_text(text + "\n")
    return 1 if report.bad else 0
