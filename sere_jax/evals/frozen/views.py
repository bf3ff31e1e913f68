"""Two augmented views of images, as training makes them: the input of the analysis of self-relations and of its figure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from sere_jax.data.crops.views import ViewRecipe, make_views
from sere_jax.data.images.decode import BadImage, decode
from sere_jax.data.images.reading import DEFAULT_READING, ImageReading
from sere_jax.data.sources.example import Source
from sere_jax.evals.network import EvalError, Network
from sere_jax.ops.geometry import Points, Sampling, overlap_points
from sere_jax.ops.photometric import PhotometryParams, augment
from sere_jax.types import Features


class Pairs(NamedTuple):
    """Two crops each of b images, colours still untouched."""

    views: UInt8[np.ndarray, "b 2 S S 3"]
    boxes: Float[np.ndarray, "b 2 4"]  # left, top, width, height in source pixels
    flips: Bool[np.ndarray, "b 2"]
    positions: Int[np.ndarray, " b"]  # in the source


class SeenPairs(NamedTuple):
    """What a network makes of them, and where their overlap lies in each view."""

    views: Float[jax.Array, "b 2 S S 3"]  # after all augmentation, normalised
    first: Features
    second: Features
    points: tuple[Points, Points]


def read_image(source: Source, position: int, reading: ImageReading = DEFAULT_READING) -> UInt8[np.ndarray, "H W 3"]:
    """Decode one image of a source. Raises EvalError that names it: a result over other images than asked for misleads."""
    example = source[position]
    try:
        return decode(example.data, reading)
    except BadImage as error:
        raise EvalError(f"source: {example.name} cannot be read ({error}); remove it or choose other images") from error


def batch_count(images: int, batch_size: int) -> int:
    """How many batches `pairs` makes: none has one image alone where there are more, since its partner would be itself."""
    return max(1, min(-(-images // batch_size), images // 2))


def pairs(
    source: Source, positions: Sequence[int], recipe: ViewRecipe, *, seed: int, batch_size: int, reading: ImageReading = DEFAULT_READING
) -> Iterator[Pairs]:
    """Batches of about equal size, none above `batch_size` (but for one of three where batches of two would leave one image over).

    A pair is a function of (seed, its position in the source).
    """
    for part in np.array_split(np.asarray(positions, np.int32), batch_count(len(positions), batch_size)):
        made = [
            make_views(read_image(source, int(i), reading), recipe, np.random.default_rng([seed, int(i)]), reading.backend) for i in part
        ]
        yield Pairs(
            np.stack([m.global_views for m in made]), np.stack([m.boxes[:2] for m in made]), np.stack([m.flips[:2] for m in made]), part
        )


def see(
    network: Network, pair: Pairs, photometry: Sequence[PhotometryParams], *, seed: int, size: int, sampling: Sampling = "endpoints"
) -> SeenPairs:
    """Augment both views on the device (keys folded from seed and position), run the network, lay points on the overlap."""
    look = compiled_look(network, photometry, size, sampling)
    return look(network.params, pair.views, pair.boxes, pair.flips, view_keys(seed, pair.positions))


def view_keys(seed: int, positions: Int[np.ndarray, " b"]) -> jax.Array:
    """A typed key for each image."""
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.asarray(positions))


def compiled_look(network: Network, photometry: Sequence[PhotometryParams], size: int, sampling: Sampling) -> Callable[..., SeenPairs]:
    """The jitted function behind `see`: make it once where there are many batches."""
    kinds = [_with_norm(kind, network) for kind in photometry]

    def look(params: object, views: jax.Array, boxes: jax.Array, flips: jax.Array, keys: jax.Array) -> SeenPairs:
        augmented = augment(views, keys, kinds)
        features = network.apply(params, augmented.reshape(-1, *augmented.shape[2:]))
        paired = jax.tree.map(lambda x: x.reshape(-1, 2, *x.shape[1:]), features)
        first, second = jax.tree.map(lambda x: x[:, 0], paired), jax.tree.map(lambda x: x[:, 1], paired)
        points = overlap_points(boxes[:, 0], flips[:, 0], boxes[:, 1], flips[:, 1], size=size, sampling=sampling)
        return SeenPairs(augmented, first, second, points)

    return jax.jit(look)


def _with_norm(kind: PhotometryParams, network: Network) -> PhotometryParams:
    """The augmentation of the recipe with the normalisation of the network."""
    return dataclasses.replace(kind, mean=network.mean, std=network.std)
