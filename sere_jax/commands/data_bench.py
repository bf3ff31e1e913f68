"""What the input pipeline costs, stage by stage: python -m sere_jax bench --source=folder:DIR

It prints the CPU time of an image on one core for reading, decoding, cropping and assembling batches: what a worker process does.
It also prints the time to transfer a batch to the device and to change its colours there, and the number of cores that a
given speed needs. Nothing is trained.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import rich.console
import rich.table

from sere_jax.data.batches.maker import BatchError, BatchMaker
from sere_jax.data.batches.order import Stream, example_index, position_rng
from sere_jax.data.batches.pipeline import ViewsRow
from sere_jax.data.crops.views import ImageViews, ViewRecipe, empty_views, make_views
from sere_jax.data.images.decode import BadImage, decode
from sere_jax.data.images.reading import BACKENDS, Backend, ImageReading
from sere_jax.data.sources.open import Source, SourceError, open_source
from sere_jax.reporting import screen
from sere_jax.writing import destination, place, replacing, writing_to

_HOST = ("read", "decode", "crop", "assemble")


def host_stages(source: Source, recipe: ViewRecipe, batch_size: int, rounds: int, reading: ImageReading) -> dict[str, float]:
    """Milliseconds of CPU an image: each stage by itself, `batch` for all of them as a worker does them, medians over rounds."""
    maker = BatchMaker(source, ViewsRow(recipe, reading), seed=0, batch_size=batch_size, first_row=0, rows=batch_size)
    times: dict[str, list[float]] = {name: [] for name in ("read", "decode", "crop", "batch")}
    maker(0)  # opens files, fills caches
    for step in range(rounds):
        indices = [example_index(0, step * batch_size + row, len(source), batch_size) for row in range(batch_size)]
        data = _timed(times["read"], functools.partial(_readable, source, indices))
        _timed(times["decode"], functools.partial(_decode_all, data, reading, reuse=True))
        images = [image for image in _decode_all(data, reading, reuse=False) if image is not None]
        _timed(times["crop"], functools.partial(_crop, images, recipe, reading.backend, empty_views(recipe)))
        _timed(times["batch"], functools.partial(maker, step))
    milliseconds_of = {name: statistics.median(values) / batch_size * 1000 for name, values in times.items()}
    # What is left of a whole batch: fresh memory for it, drawing replacements, the interpreter between the stages.
    return {
        **milliseconds_of,
        "assemble": max(0.0, milliseconds_of["batch"] - milliseconds_of["read"] - milliseconds_of["decode"] - milliseconds_of["crop"]),
    }


def _timed(times: list[float], work: Callable[[], Any]) -> Any:
    began = time.process_time()
    result = work()
    times.append(time.process_time() - began)
    return result


def _readable(source: Source, indices: Sequence[int]) -> list[bytes]:
    files = []
    for index in indices:
        try:
            files.append(source[index].data)
        except OSError:
            continue
    return files


def _decode_all(data: Sequence[bytes], reading: ImageReading, *, reuse: bool) -> list[np.ndarray | None]:
    images: list[np.ndarray | None] = []
    for one in data:
        try:
            images.append(decode(one, reading, reuse=reuse))
        except BadImage:
            images.append(None)
    return images


def _crop(images: Sequence[np.ndarray], recipe: ViewRecipe, backend: Backend, scratch: ImageViews) -> None:
    for position, image in enumerate(images):
        make_views(image, recipe, position_rng(0, position, Stream.VIEWS), backend, out=scratch)


def device_stages(recipe: ViewRecipe, batch_size: int, rounds: int) -> dict[str, float]:
    """Milliseconds of time an image for the transfer to the first device and the photometry there (DINO's recipe)."""
    import jax

    from sere_jax.ops.photometric import PhotometryParams, augment

    views = tuple(np.zeros(array.shape, np.uint8) for array in empty_views(recipe, batch_size)[:2])
    first, second, local = PhotometryParams(), PhotometryParams(blur_prob=0.1, solarize_prob=0.2), PhotometryParams(blur_prob=0.5)

    @jax.jit
    def colours(views: tuple[jax.Array, jax.Array], keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        return augment(views[0], keys, [first, second]), augment(views[1], keys, [local] * recipe.local_count, first_view=2)

    keys = jax.random.split(jax.random.key(0), batch_size)
    jax.block_until_ready(colours(jax.device_put(views), keys))
    times: dict[str, list[float]] = {"transfer": [], "device augmentation": []}
    for _ in range(rounds):
        began = time.perf_counter()
        on_device = jax.block_until_ready(jax.device_put(views, may_alias=False))
        between = time.perf_counter()
        jax.block_until_ready(colours(on_device, keys))
        times["transfer"].append(between - began)
        times["device augmentation"].append(time.perf_counter() - between)
    return {name: statistics.median(values) / batch_size * 1000 for name, values in times.items()}


def show(title: str, host: dict[str, float], device: dict[str, float], wanted: Sequence[float], console: rich.console.Console) -> None:
    """The stages as a table, and the cores that a speed needs."""
    table = rich.table.Table("stage", "ms an image", "images/s", "share of the host's work", title=title, title_justify="left")
    for name in _HOST:
        rate = f"{1000 / host[name]:,.0f}" if host[name] else "-"
        table.add_row(name, f"{host[name]:.3f}", rate, f"{host[name] / host['batch']:.0%}")
    table.add_row("all of it, one core", f"{host['batch']:.3f}", f"{1000 / host['batch']:,.0f}", "", style="bold")
    for name, value in device.items():
        table.add_row(name, f"{value:.3f}", f"{1000 / value:,.0f}", "")
    console.print(table)
    for speed in wanted:
        console.print(f"{speed:,.0f} images/s need {cores(host['batch'], speed):.1f} cores")


def cores(milliseconds: float, images_per_second: float) -> float:
    """Cores that are wholly busy with that many images a second."""
    return milliseconds * images_per_second / 1000


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m sere_jax bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--source", required=True, help="as data.source of a config")
    parser.add_argument("--backend", choices=BACKENDS, default="fast", help="decoder, as data.backend of a config (default: fast)")
    parser.add_argument("--batch_size", type=int, default=64, help="images of a batch (default: 64)")
    parser.add_argument("--rounds", type=int, default=5, help="batches measured")
    parser.add_argument("--global_size", type=int, default=224, help="pixels a side of a global crop (default: 224)")
    parser.add_argument("--local_size", type=int, default=96, help="pixels a side of a local crop (default: 96)")
    parser.add_argument("--local_count", type=int, default=4, help="local crops of an image (default: 4)")
    parser.add_argument("--images_per_second", default="1000,3000", help="speeds for which to state the number of cores")
    parser.add_argument("--host_only", action="store_true", help="leave the device alone")
    parser.add_argument("--json", default="", metavar="FILE", help="write the measurements here")
    flags = parser.parse_args(arguments)
    cv2.setNumThreads(0)
    recipe = ViewRecipe(global_size=flags.global_size, local_size=flags.local_size, local_count=flags.local_count)
    try:
        source = open_source(flags.source)
        batch_size = min(flags.batch_size, len(source))
        host = host_stages(source, recipe, batch_size, flags.rounds, ImageReading(flags.backend))
    except (SourceError, BatchError) as error:
        print(error, file=sys.stderr)
        return 2
    device = {} if flags.host_only else device_stages(recipe, min(batch_size, 16), flags.rounds)
    wanted = [float(speed) for speed in flags.images_per_second.split(",")]
    title = (
        f"{flags.source}, {flags.backend}, 2 x {flags.global_size} + {flags.local_count} x {flags.local_size}, {os.cpu_count()} cores here"
    )
    show(title, host, device, wanted, screen.stdout())
    if flags.json:
        report = {"milliseconds": host | device, "cores": {f"{speed:g}": cores(host["batch"], speed) for speed in wanted}}
        with writing_to(destination(flags.json).parent), replacing(place(flags.json)) as temporary:
            temporary.write_text(json.dumps(report, indent=2) + "\n")
    return 0
