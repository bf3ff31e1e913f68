"""Features of labelled images, computed once for each network: the cls tokens of the last blocks and the mean patch token.

They stay in memory, or are written to Parquet files and read from there when the same network, images and settings come again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Bool, Float, Int

from sere_jax import distributed
from sere_jax.buckets import Location
from sere_jax.data.images.decode import decode
from sere_jax.data.images.reading import ImageReading
from sere_jax.data.sources.example import BadImage, Source
from sere_jax.evals import feature_files, features
from sere_jax.evals.frozen import baselines
from sere_jax.evals.frozen.comparison import ImageSet
from sere_jax.evals.network import EvalError, Network, digest
from sere_jax.reporting import table
from sere_jax.types import Features, PyTree

POOLING = ("cls", "cls+patches")  # of a head: the cls tokens of its blocks, or these and the mean patch token


class Part(NamedTuple):
    """Features of all images of one source that could be read, in the order of the source; equal on every process."""

    features: Float[np.ndarray, "n D"]
    labels: Int[np.ndarray, " n"]
    positions: Int[np.ndarray, " n"]  # in the source
    unreadable: Int[np.ndarray, " m"]  # positions of the images that could not be read


def columns(width: int, blocks: Sequence[int], pooling: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Where the features of each kind lie in the D columns of `Part.features`: kind -> (first, end).

    Columns are ordered [cls of the last block but n - 1, ..., cls of the last block, mean patch token], where n = max(blocks). The
    last k blocks, with or without the mean patch token, are then always neighbours.

    Args:
      width: D / (n + 1), that of one token.

    >>> columns(48, (1, 4), ("cls", "cls+patches"))["cls of 4 blocks + mean patch"]
    (0, 240)
    """
    most = max(blocks)
    result = {}
    for count in blocks:
        for pool in pooling:
            name = f"cls of {count} block{'s' if count > 1 else ''}" + (" + mean patch" if pool != "cls" else "")
            result[name] = ((most - count) * width, (most + (pool != "cls")) * width)
    return result


def check_blocks(network: Network, blocks: Sequence[int]) -> None:
    """Raise EvalError where the network has fewer blocks."""
    deepest = max(network.depth, 1)
    if max(blocks) > deepest:
        which = f"has {network.depth} blocks" if network.depth else "is no ViT, and has the last features only"
        raise EvalError(f"blocks: found {max(blocks)}, expected at most {deepest}: {network.name} {which}")


def extract(
    network: Network,
    source: Source,
    images: ImageSet,
    *,
    blocks: int,
    sides: tuple[int, int],
    reading: ImageReading,
    directory: Location | None = None,
    numbers: Int[np.ndarray, " c"] | None = None,
) -> Part:
    """The features of a source by one network.

    Devices and processes share the work as in `features.Extractor`; the result is the same on all of them.

    Args:
      source: what `images` reads, with its own labels; its fingerprint tells whether files hold the same images.
      blocks: number of last blocks. A ResNet has 1: its pooled map, followed by the mean of its last map.
      sides: of the crop, and of the shorter side before it, in pixels.
      reading: how `images` are decoded; features in files are only used for the same.
      directory: where Parquet files are looked for and written; None keeps the features in memory only. Processes share it.
      numbers: the class of each label of the source; None: the label.

    Raises EvalError for too many blocks, and where no image can be read.
    """
    check_blocks(network, (blocks,))
    extractor = features.Extractor(of_blocks(network, blocks), mean=network.mean, std=network.std, tokens=(features.BLOCKS,))

    def compute() -> Part:
        extracted = extractor(network.params, images.read(sides, network.name))
        return Part(extracted.features[features.BLOCKS], extracted.labels, extracted.positions, extracted.unreadable)

    if directory is None:
        return _numbered(compute(), numbers)
    facts = {"blocks": blocks, "sides": sides, "mean": network.mean, "std": network.std, "reading": repr(reading)}
    readable = functools.partial(_readable, source, reading)
    return _numbered(_stored(directory, _identity(network, source, facts), compute, readable), numbers)


def of_blocks(network: Network, blocks: int) -> Callable[[PyTree, jax.Array], Features]:
    """The network with the tokens of its last blocks after the final norm as `layers`, which `features.pool` takes as `BLOCKS`."""
    layers = tuple(range(network.depth - blocks, network.depth)) if network.depth else ()
    return functools.partial(network.apply, layers=layers, layers_norm="post") if layers else _pooled(network.apply)


def raw_pixels(images: ImageSet, sides: tuple[int, int], numbers: Int[np.ndarray, " c"] | None = None) -> Part:
    """The baseline: each image shrunk to 16 x 16 pixels."""
    described = baselines.describe(baselines.raw_pixels, images.read(sides, "raw pixels"))
    return _numbered(Part(described.features["baseline"], described.labels, described.positions, described.unreadable), numbers)


def held_out(labels: Int[np.ndarray, " n"], share: float, seed: int) -> Bool[np.ndarray, " n"]:
    """Which images are held out to choose a setting on: a share of every class, but never its last image, nor one without a class.

    The share of a class is rounded up or down, so that those of all classes together are right: of classes of five images a tenth is
    one image of every second class.

    >>> held_out(np.array([0] * 10 + [1] * 4 + [2]), 0.3, seed=0).nonzero()[0].size
    4
    """
    rng = np.random.default_rng(seed)
    out = np.zeros(len(labels), np.bool_)
    classes, counts = np.unique(labels[labels >= 0], return_counts=True)
    # Of classes with an image to spare: the share of the first k together, rounded. Differences are the classes' own.
    together = np.floor(share * np.cumsum(np.where(counts > 1, counts, 0)) + 0.5 + 1e-9).astype(np.int64)
    for label, count, size in zip(classes, counts, np.diff(together, prepend=0), strict=True):
        rows = rng.permutation(np.flatnonzero(labels == label))
        out[rows[: min(size, count - 1)]] = True
    return out


def split(labels: Int[np.ndarray, " n"], share: float, seed: int) -> Bool[np.ndarray, " n"]:
    """`held_out` for select=split. Raises EvalError where that is no image at all."""
    out = held_out(labels, share, seed)
    if not out.any():
        raise EvalError(
            f"select: found split, but {share:g} of the classes that have an image to spare is none; expected validation, a larger "
            "held_out, or more training images"
        )
    return out


def _numbered(part: Part, numbers: np.ndarray | None) -> Part:
    return part if numbers is None else part._replace(labels=np.where(part.labels < 0, -1, numbers[part.labels]).astype(np.int32))


def _pooled(apply: Callable[..., Features]) -> Callable[[PyTree, jax.Array], Features]:
    """A network without layers, whose cls (a ResNet's pooled map) stands for that of its last block."""

    def with_layer(params: PyTree, images: jax.Array) -> Features:
        answer = apply(params, images)
        return answer._replace(layers=(answer.cls[:, None],))

    return with_layer


def _identity(network: Network, source: Source, facts: dict[str, Any]) -> dict[str, Any]:
    """What the features depend on."""
    return {"network": digest(network), "data": source.fingerprint().digest, **facts}


def _stored(directory: Location, identity: dict[str, Any], compute: Callable[[], Part], readable: Callable[[np.ndarray], bool]) -> Part:
    """Read the part from its own sub-directory, or compute it and write it there.

    A part that lacks images is computed again when one of them is `readable` now: a disk that was away for a while is no lasting fault.
    """
    place = directory / hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    if _agreed((place / feature_files.DESCRIPTION).exists()):
        with distributed.together():
            try:
                stored = _read(place)
            except (OSError, ValueError, KeyError) as error:
                raise EvalError(f"features: {place} cannot be read ({error}); delete it, and it is computed again") from error
        if not _agreed(jax.process_index() == 0 and readable(stored.unreadable)):
            table.say(f"features of {len(stored.labels):,} images are read from {place}")
            return stored
        table.say(f"features in {place} lack images that can be read now, and are computed again")
        if jax.process_index() == 0:
            (place / feature_files.DESCRIPTION).unlink()
    part = compute()
    if jax.process_index() == 0:
        _write(place, identity, part)
    return part


def _readable(source: Source, reading: ImageReading, positions: Int[np.ndarray, " m"]) -> bool:
    """Whether one of these images has a class and can be decoded."""
    for position in positions.tolist():
        with contextlib.suppress(OSError, BadImage):
            example = source[position]
            decode(example.data, reading)
            if example.label >= 0:
                return True
    return False


def _agreed(exists: bool) -> bool:
    """What process 0 found."""
    return bool(multihost_utils.broadcast_one_to_all(np.array(exists))) if jax.process_count() > 1 else exists


def _read(place: Location) -> Part:
    description, rows = feature_files.read(place)
    unreadable = np.array(description["unreadable"], np.int32)
    return Part(rows["features"], rows["label"].astype(np.int32), rows["position"].astype(np.int32), unreadable)


def _write(place: Location, identity: dict[str, Any], part: Part) -> None:
    about = {**identity, "unreadable": part.unreadable.tolist()}
    try:
        with feature_files.Shards(place, 65536, "parquet", "float32", about) as shards:
            for vector, label, position in zip(part.features, part.labels, part.positions, strict=True):
                shards.add({"position": int(position), "label": int(label)}, {"features": vector})
    except OSError as error:
        table.say(f"warning: {place} cannot be written ({error}); the features are kept in memory only")
        return
    table.say(f"features of {shards.rows:,} images are written to {place}")
