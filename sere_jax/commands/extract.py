"""Write features of images to files: python -m sere_jax extract --checkpoint=X --data=folder:DIR --tokens=cls,patches --output=DIR

X is anything that `load_backbone` reads, --data any source of the project. DIR gets `features-00000.parquet` (or `.npz`), ..., with one
row for each readable image, its name and its label, and `features.json`, which describes the columns and the origin of the weights.

tokens     cls [d], patches [h, w, d] (both after the final norm), attention [m, h, w] (of the cls token to the patches, in the
           last block, one map for each head; the rest of its attention, up to 1, goes to itself)
layers     numbers of blocks, from 0, or back from -1: `layer_I` [1 + h w, d], all tokens after block I, cls first, before the norm
size       pixels of the centre square, cut out after the shorter side was resized (default: the network's own); or
           native: every image at its own size, cut to whole patches

Names are paths below DIR. A byte of a name that is not UTF-8 is spelled \\xNN, and a backslash is doubled.
Exit code 2: the extraction failed.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sere_jax.buckets import Location
from sere_jax.commands.compiled import keep_compiled
from sere_jax.data.batches.whole_images import EvalBatch, eval_batches
from sere_jax.data.images.decode import BadImage, decode
from sere_jax.data.images.reading import MAX_PIXELS, ImageReading
from sere_jax.data.sources.example import Entry, Example, Source
from sere_jax.data.sources.open import SourceError, open_source
from sere_jax.evals import overlap
from sere_jax.evals.feature_files import FORMATS, Shards, escaped, missing_package
from sere_jax.evals.features import in_turns, normalise, turn_size
from sere_jax.evals.network import size_mistake
from sere_jax.interop.files import FileError
from sere_jax.interop.tables import InteropError
from sere_jax.reporting.progress import track
from sere_jax.train.checkpoint import CheckpointError
from sere_jax.types import Features
from sere_jax.weights.backbone import Backbone, load_backbone
from sere_jax.writing import destination

TOKENS = ("cls", "patches", "attention")
DTYPES = ("float32", "float16")


class ExtractError(ValueError):
    """An argument cannot be followed; the message names it, what was found and what was expected."""


class Extracted(NamedTuple):
    """What was written."""

    files: tuple[Location, ...]
    images: int
    unreadable: int


class _Named(Source):
    """A source that remembers the names of the examples that were read: batches carry only positions."""

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

    def read_ahead(self, indices: Sequence[int]) -> None:
        """Begin to fetch images that are asked for soon."""
        self._source.read_ahead(indices)

    def listing(self) -> Iterator[Entry]:
        """That of the source."""
        return self._source.listing()


def extract(
    backbone: Backbone,
    source: Source,
    output: str | Location,
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
    """Compute and write the features of all images of `source`; the module's docstring describes the columns.

    Args:
      size, resize: pixels of the centre crop, and of the shorter side before it; 0: the network's own, size x 256 / 224.
      native: every image at its own size instead, one at a time, compiled anew for each new size; parquet only.
      workers: threads that decode, one batch ahead.

    Raises ExtractError with every argument that cannot be followed, and where the output cannot be written.

    Example:
      >>> from sere_jax import load_backbone
      >>> from sere_jax.data.sources.open import open_source
      >>> extract(load_backbone("RUN"), open_source("folder:."), "features", tokens=("cls",)).images
      1
    """
    module, prepare, output = backbone.module, backbone.preprocess, destination(output)
    side = size or prepare.size
    shorter = resize or (side * 256 // 224 if size else prepare.resize)
    numbers = {"batch_size": batch_size, "rows_per_file": rows_per_file, "max_pixels": max_pixels}
    mistakes = [f"{name}: found {number}, expected at least 1" for name, number in numbers.items() if number < 1]
    mistakes += _size_mistakes(module, native, side, shorter)
    mistakes += _mistakes(output, module, tokens, layers, native, layout, dtype)
    if mistakes:
        raise ExtractError("\n".join(mistakes))
    wanted = tuple(layer % module.depth for layer in layers)
    named, patch = _Named(source), module.patch_size
    reading = ImageReading("pil", max_pixels, module.in_channels, prepare.value_range)
    if native:
        batches, count = _native(named, patch, reading), len(named)
    else:
        rows = -(-batch_size // jax.local_device_count()) * jax.local_device_count()
        batches = eval_batches(named, size=side, resize=shorter, batch_size=rows, reading=reading, workers=workers)
        count = -(-len(named) // rows)
    about = _origin(backbone, source) | {"size": "native" if native else side, "resize": None if native else shorter}
    compute = _compute(backbone, tokens, wanted, jax.local_device_count() if not native else 1)
    try:
        with Shards(output, rows_per_file, layout, dtype, about) as shards:
            for batch, features in overlap.computed(track(batches, "extracting", count), lambda batch: compute(batch.images)):
                for row in np.flatnonzero(batch.valid):
                    facts = _facts(named.names[int(batch.index[row])], int(batch.labels[row]), batch.images.shape, patch)
                    shards.add(facts, {key: value[row] for key, value in features.items()})
    except OSError as error:
        raise ExtractError(f"output: {output} cannot be written: {error}") from error
    return Extracted(tuple(shards.files), shards.rows, len(source) - shards.rows)


def _facts(name: str, label: int, shape: Sequence[int], patch: int) -> dict[str, str | int]:
    """The columns of an image beside its features."""
    return {"name": escaped(name), "label": label, "grid_height": shape[1] // patch, "grid_width": shape[2] // patch}


def _origin(backbone: Backbone, source: Source) -> dict[str, Any]:
    """What `features.json` says of the weights and of the images."""
    weights = {key: backbone.about.get(key) for key in ("source", "network", "step", "format")}
    return weights | {"data": source.spec, "classes": source.classes, "patch_size": backbone.module.patch_size}


def _size_mistakes(module: Any, native: bool, side: int, shorter: int) -> list[str]:
    if native:
        return []
    if side < 1 or shorter < side:
        return [f"size, resize: found {side} and {shorter}, expected a size of at least 1 and a resize of at least the size"]
    mistake = size_mistake(side, module.patch_size) if module.heads else ""
    return [f"size: {mistake}"] if mistake else []


def _mistakes(
    output: Location, module: Any, tokens: Sequence[str], layers: Sequence[int], native: bool, layout: str, dtype: str
) -> list[str]:
    depth = module.depth
    mistakes = [f"tokens: found {token!r}, expected some of {', '.join(TOKENS)}" for token in tokens if token not in TOKENS]
    mistakes += [f"layers: found {layer}, expected 0 to {depth - 1}, or -{depth} to -1" for layer in layers if not -depth <= layer < depth]
    if not module.heads and ("attention" in tokens or layers):
        mistakes.append("tokens, layers: found attention or layers, expected cls or patches: a ResNet has no other tokens")
    for name, value, choices in (("format", layout, FORMATS), ("dtype", dtype, DTYPES)):
        if value not in choices:
            mistakes.append(f"{name}: found {value!r}, expected one of {', '.join(choices)}")
    if not tokens and not layers:
        mistakes.append("tokens: found none, expected at least one, or layers")
    if native and layout == "npz":
        mistakes.append("size: found native with the format npz, whose arrays have one shape; expected the format parquet")
    if package := missing_package(layout):
        mistakes.append(f"format: {layout} needs {package}: pip install {package}, or take the format npz")
    if output.is_dir() and any(output.glob("features-*")):
        mistakes.append(f"output: found features in {output} already; expected another directory")
    return mistakes


def _native(source: _Named, patch: int, reading: ImageReading) -> Iterator[EvalBatch]:
    """One image a batch, cut to whole patches at its right and lower edges; one below a patch counts as unreadable."""
    for index in range(len(source)):
        image = np.zeros((patch, patch, reading.channels), np.uint8)
        name, label, valid = f"item {index}", -1, False
        try:
            example = source[index]
            name = ascii(example.name)
            decoded, label = decode(example.data, reading), example.label
            height, width = (extent // patch * patch for extent in decoded.shape[:2])
            valid = bool(height and width)
            if not valid:
                raise BadImage(f"{decoded.shape[1]} x {decoded.shape[0]} pixels are less than a patch")
            image = decoded[:height, :width]
        except (BadImage, OSError) as error:
            print(f"{source.spec}: {name} cannot be read and is left out: {error}", file=sys.stderr)
        yield EvalBatch(image[None], np.array([label]), np.array([index]), np.array([valid]))


def _compute(backbone: Backbone, tokens: Sequence[str], layers: tuple[int, ...], devices: int) -> Any:
    """A function from uint8 images [b, H, W, c], split over the local devices, to arrays by column, which it does not wait for."""
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.local_devices()[:devices])
    copies, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    params = jax.device_put(backbone.params, copies)

    def columns(params: Any, images: jax.Array) -> dict[str, jax.Array]:
        normalised = normalise(images, backbone.preprocess.mean, backbone.preprocess.std)
        features: Features = backbone.apply(params, normalised, layers=layers, attention="attention" in tokens)
        known = {"cls": features.cls, "patches": features.patches} | {f"layer_{i}": x for i, x in zip(layers, features.layers, strict=True)}
        if features.attention is not None:
            known["attention"] = features.attention[:, :, 0, 1:].reshape(*features.attention.shape[:2], *features.patches.shape[1:3])
        return {name: jnp.asarray(known[name], jnp.float32) for name in (*tokens, *(f"layer_{i}" for i in layers))}

    @jax.jit
    def run(params: Any, images: jax.Array) -> dict[str, jax.Array]:
        return in_turns(functools.partial(columns, params), images, turn_size(images.shape, devices))

    return lambda images: run(params, jax.device_put(images, split))


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
    parser.add_argument("--format", default="parquet", choices=FORMATS, help="kind of the files (default: parquet)")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="type of the features (default: float32)")
    parser.add_argument("--batch_size", type=int, default=32, help="images of one forward pass (default: 32)")
    parser.add_argument("--rows_per_file", type=int, default=1024, help="images whose features share a file (default: 1024)")
    parser.add_argument("--workers", type=int, default=2, help="threads that decode")
    parser.add_argument("--max_pixels", type=int, default=MAX_PIXELS, help="larger images count as unreadable")
    parser.add_argument("--network", default="", choices=("", "teacher", "student"), help="default: the one that the recipe evaluates")
    parser.add_argument("--step", type=int, help="default: the newest")
    parser.add_argument("--heads", type=int, default=0, help="attention heads, for files that do not state them")
    parser.add_argument("--ignore", default="", help="patterns of tensors of a file to leave out, separated by commas")
    return parser


def _whole_numbers(name: str, texts: Sequence[str]) -> list[int]:
    try:
        return [int(text) for text in texts]
    except ValueError:
        special = ", or native" if name == "size" else ""
        raise ExtractError(f"{name}: found {','.join(texts)!r}, expected whole numbers{special}") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = _parser().parse_args(argv)
    output = destination(options.output)
    keep_compiled()
    try:
        native = options.size == "native"
        layers = _whole_numbers("layers", [text for text in options.layers.split(",") if text])
        size = 0 if native else _whole_numbers("size", [options.size])[0]
        ignore = [pattern for pattern in options.ignore.split(",") if pattern]
        backbone = load_backbone(options.checkpoint, network=options.network, step=options.step, heads=options.heads, ignore=ignore)
        for line in backbone.about.get("report", ()):
            print(line)
        written = extract(
            backbone,
            open_source(options.data),
            output,
            tokens=[token for token in options.tokens.split(",") if token],
            layers=layers,
            size=size,
            resize=options.resize,
            native=native,
            batch_size=options.batch_size,
            rows_per_file=options.rows_per_file,
            layout=options.format,
            dtype=options.dtype,
            workers=options.workers,
            max_pixels=options.max_pixels,
        )
    except (ValueError, CheckpointError, ExtractError, SourceError, FileError, InteropError) as error:
        print(f"extract: {error}", file=sys.stderr)
        return 2
    unreadable = f", {written.unreadable} left out as unreadable" if written.unreadable else ""
    print(f"{output}: {written.images:,} images in {len(written.files)} files{unreadable}")
    return 0
