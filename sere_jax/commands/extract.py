"""Features of images, computed by a backbone and written to files. `extract_command` is the program, and describes the columns."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sere_jax.buckets import Location
from sere_jax.commands.extract_command import ExtractError, free_mistakes, number_mistakes
from sere_jax.data.batches.whole_images import EvalBatch, eval_batches
from sere_jax.data.images.decode import BadImage, decode
from sere_jax.data.images.reading import MAX_PIXELS, ImageReading
from sere_jax.data.sources.example import Entry, Example, Source
from sere_jax.evals import overlap
from sere_jax.evals.feature_files import Shards, escaped
from sere_jax.evals.features import in_turns, normalise, turn_size
from sere_jax.evals.network import size_mistake
from sere_jax.reporting.progress import track
from sere_jax.types import Features
from sere_jax.weights.backbone import Backbone
from sere_jax.writing import destination


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
    """Compute and write the features of all images of `source`; `extract_command` describes the columns.

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
    mistakes = number_mistakes(batch_size=batch_size, rows_per_file=rows_per_file, max_pixels=max_pixels)
    mistakes += free_mistakes(output, tokens, layers, native, layout, dtype)
    mistakes += _size_mistakes(module, native, side, shorter)
    mistakes += _mistakes(module, tokens, layers)
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


def _mistakes(module: Any, tokens: Sequence[str], layers: Sequence[int]) -> list[str]:
    depth = module.depth
    mistakes = [f"layers: found {layer}, expected 0 to {depth - 1}, or -{depth} to -1" for layer in layers if not -depth <= layer < depth]
    if not module.heads and ("attention" in tokens or layers):
        mistakes.append("tokens, layers: found attention or layers, expected cls or patches: a ResNet has no other tokens")
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
