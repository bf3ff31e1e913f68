"""Features of images, in files: python -m sere_jax extract --checkpoint=X --data=folder:DIR --tokens=cls,patches --output=DIR

X is whatever `load_backbone` reads, --data any source of the project. DIR gets `features-00000.parquet` (or `.npz`), ..., a row
for each readable image with its name and label, and `features.json`: what the columns are and where they come from.

tokens     cls [d], patches [h, w, d] (both after the final norm), attention [m, h, w] (of the cls token to the patches, in the
           last block, a map for each head; what is missing to 1 is its attention to itself)
layers     numbers of blocks, from 0 or back from -1: `layer_I` [1 + h w, d], all tokens after block I, cls first, before the norm
size       pixels of the square cut out of the middle after the shorter side was resized (default: the network's own), or
           native: every image in its own size, cut to whole patches

Exit code 2: it could not be done.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sere_jax.commands.feature_files import FORMATS, Shards
from sere_jax.data.batches.whole_images import EvalBatch, eval_batches
from sere_jax.data.images.decode import BadImage, decode
from sere_jax.data.images.reading import MAX_PIXELS, ImageReading
from sere_jax.data.sources.example import Entry, Example, Source
from sere_jax.data.sources.open import SourceError, open_source
from sere_jax.evals.network import size_mistake
from sere_jax.interop.files import FileError
from sere_jax.interop.tables import InteropError
from sere_jax.reporting.progress import track
from sere_jax.train.checkpoint import CheckpointError
from sere_jax.types import Features
from sere_jax.weights.backbone import Backbone, load_backbone

TOKENS = ("cls", "patches", "attention")
DTYPES = ("float32", "float16")


class ExtractError(ValueError):
    """What was asked cannot be done; the message names the argument, what was found and what was expected."""


class Extracted(NamedTuple):
    """What was written."""

    files: tuple[Path, ...]
    images: int
    unreadable: int


class _Named(Source):
    """A source that remembers the names of what was read from it: batches carry only positions."""

    def __init__(self, source: Source) -> None:
        self.spec, self.classes = source.spec, source.classes
        self.names: dict[int, str] = {}
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        example = self._source[index]
        self.names[index] = example.name
        return example

    def listing(self) -> Iterator[Entry]:
        """That of the source."""
        return self._source.listing()


def extract(
    backbone: Backbone,
    source: Source,
    output: str | Path,
    *,
    tokens: Sequence[str] = ("cls",),
    layers: Sequence[int] = (),
    size: int = 0,
    resize: int = 0,
    native: bool = False,
    batch_size: int = 32,
    rows_per_file: int = 1024,
    layout: str = "parquet",
    dtype: str = "float32",
    workers: int = 0,
    max_pixels: int = MAX_PIXELS,
) -> Extracted:
    """Compute and write the features of all images of `source`; the module's docstring says what they are.

    Args:
      size, resize: pixels of the centre crop and of the shorter side before it; 0: the network's own, size x 256 / 224.
      native: every image in its own size instead, one at a time, compiled anew for each new size; parquet alone holds that.
      workers: threads that decode, one batch ahead.

    Raises ExtractError on arguments that do not fit, all listed.
    """
    depth, output = backbone.module.depth, Path(output).expanduser()
    if not backbone.module.heads and ("attention" in tokens or layers):
        raise ExtractError("tokens, layers: found attention or layers, expected cls or patches: a ResNet has no other tokens")
    _check(output, depth, tokens, layers, native, layout, dtype)
    chosen = tuple(layer % depth for layer in layers)
    named = _Named(source)
    side = size or backbone.preprocess.size
    shorter = resize or (side * 256 // 224 if size else backbone.preprocess.resize)
    patch = backbone.module.patch_size
    if not native and backbone.module.heads and (mistake := size_mistake(side, patch)):
        raise ExtractError(f"size: {mistake}")
    reading = ImageReading("pil", max_pixels, backbone.module.in_channels, backbone.preprocess.value_range)
    if native:
        batches, count = _native(named, patch, reading), len(named)
    else:
        rows = -(-batch_size // jax.local_device_count()) * jax.local_device_count()
        batches = eval_batches(named, size=side, resize=shorter, batch_size=rows, reading=reading, workers=workers)
        count = -(-len(named) // rows)
    about = {**{key: backbone.about.get(key) for key in ("source", "network", "step", "format")}, "data": source.spec}
    about |= {"classes": source.classes, "size": "native" if native else side, "resize": None if native else shorter, "patch_size": patch}
    compute = _compute(backbone, tokens, chosen, jax.local_device_count() if not native else 1)
    with Shards(output, rows_per_file, layout, dtype, about) as shards:
        for batch in track(batches, "extracting", count):
            found = compute(batch.images)
            for row in np.flatnonzero(batch.valid):
                name, grid = named.names[int(batch.index[row])], [extent // patch for extent in batch.images.shape[1:3]]
                shards.add(name, int(batch.labels[row]), grid, {key: value[row] for key, value in found.items()})
    return Extracted(tuple(shards.files), shards.rows, len(source) - shards.rows)


def _check(output: Path, depth: int, tokens: Sequence[str], layers: Sequence[int], native: bool, layout: str, dtype: str) -> None:
    mistakes = [f"tokens: found {token!r}, expected some of {', '.join(TOKENS)}" for token in tokens if token not in TOKENS]
    mistakes += [f"layers: found {layer}, expected 0 to {depth - 1}, or -{depth} to -1" for layer in layers if not -depth <= layer < depth]
    for name, value, choices in (("format", layout, FORMATS), ("dtype", dtype, DTYPES)):
        if value not in choices:
            mistakes.append(f"{name}: found {value!r}, expected one of {', '.join(choices)}")
    if not tokens and not layers:
        mistakes.append("tokens: found none, expected at least one, or layers")
    if native and layout == "npz":
        mistakes.append("size: found native with the format npz, whose arrays have one shape; expected the format parquet")
    if output.is_dir() and any(output.glob("features-*")):
        mistakes.append(f"output: found features in {output} already; expected another directory")
    if mistakes:
        raise ExtractError("\n".join(mistakes))


def _native(source: _Named, patch: int, reading: ImageReading) -> Iterator[EvalBatch]:
    """One image a batch, its right and lower edges cut to whole patches; smaller than a patch counts as unreadable."""
    for index in range(len(source)):
        image = np.zeros((patch, patch, 3), np.uint8)
        label, valid = -1, False
        try:
            example = source[index]
            decoded, label = decode(example.data, reading), example.label
            height, width = (extent // patch * patch for extent in decoded.shape[:2])
            valid = bool(height and width)
            image = decoded[:height, :width] if valid else image
        except (BadImage, OSError) as error:
            print(f"{source.spec}: item {index} cannot be read and is left out: {error}", file=sys.stderr)
        yield EvalBatch(image[None], np.array([label]), np.array([index]), np.array([valid]))


def _compute(backbone: Backbone, tokens: Sequence[str], layers: tuple[int, ...], devices: int) -> Any:
    """uint8 images [b, H, W, c] -> NumPy arrays by column; the images are split over the local devices."""
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.local_devices()[:devices])
    copies, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    params = jax.device_put(backbone.params, copies)
    mean, std = (jnp.asarray(values) for values in (backbone.preprocess.mean, backbone.preprocess.std))

    @jax.jit
    def run(params: Any, images: jax.Array) -> dict[str, jax.Array]:
        normalised = (images.astype(jnp.float32) / 255 - mean) / std
        features: Features = backbone.apply(params, normalised, layers=layers, attention="attention" in tokens)
        h, w = features.patches.shape[1:3]
        found = {"cls": features.cls, "patches": features.patches}
        if features.attention is not None:
            found["attention"] = features.attention[:, :, 0, 1:].reshape(*features.attention.shape[:2], h, w)
        chosen = {name: found[name] for name in tokens} | {f"layer_{i}": x for i, x in zip(layers, features.layers, strict=True)}
        return {name: jnp.asarray(value, jnp.float32) for name, value in chosen.items()}

    def compute(images: np.ndarray) -> dict[str, np.ndarray]:
        return jax.tree.map(np.asarray, run(params, jax.device_put(images, split)))

    return compute


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sere_jax extract", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, help="workdir or file")
    parser.add_argument("--data", required=True, help="folder:DIR, bundled[:SPLIT] or tfds:NAME[/CONFIG]:SPLIT")
    parser.add_argument("--output", required=True, help="directory")
    parser.add_argument("--tokens", default="cls", help="some of cls,patches,attention; '' with --layers alone")
    parser.add_argument("--layers", default="", help="numbers of blocks, 0,5,-1")
    parser.add_argument("--size", default="0", help="pixels, or native; default: the network's own")
    parser.add_argument("--resize", type=int, default=0, help="the shorter side before the crop; default: size x 256 / 224")
    parser.add_argument("--format", default="parquet", choices=FORMATS)
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--rows_per_file", type=int, default=1024)
    parser.add_argument("--workers", type=int, default=2, help="threads that decode")
    parser.add_argument("--max_pixels", type=int, default=MAX_PIXELS, help="larger images count as unreadable")
    parser.add_argument("--network", default="", choices=("", "teacher", "student"), help="default: the one that the recipe evaluates")
    parser.add_argument("--step", type=int, help="default: the newest")
    parser.add_argument("--heads", type=int, default=0, help="attention heads, for files that do not say it")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The program; the exit code."""
    given = _parser().parse_args(argv)
    try:
        native = given.size == "native"
        layers = [int(text) for text in given.layers.split(",") if text]
        backbone = load_backbone(given.checkpoint, network=given.network, step=given.step, heads=given.heads)
        for line in backbone.about.get("report", ()):
            print(line)
        written = extract(
            backbone,
            open_source(given.data),
            given.output,
            tokens=[token for token in given.tokens.split(",") if token],
            layers=layers,
            size=0 if native else int(given.size),
            resize=given.resize,
            native=native,
            batch_size=given.batch_size,
            rows_per_file=given.rows_per_file,
            layout=given.format,
            dtype=given.dtype,
            workers=given.workers,
            max_pixels=given.max_pixels,
        )
    except (ValueError, CheckpointError, ExtractError, SourceError, FileError, InteropError) as error:
        print(f"extract: {error}", file=sys.stderr)
        return 2
    left_out = f", {written.unreadable} left out as unreadable" if written.unreadable else ""
    print(f"{given.output}: {written.images:,} images in {len(written.files)} files{left_out}")
    return 0
