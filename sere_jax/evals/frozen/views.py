"""Two augmented views of each image, made as in training, for the analysis of self-relations and its figure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from sere_jax.config.keys import RULES
from sere_jax.config.rule import Rule
from sere_jax.data.crops.views import ImageViews, ViewRecipe, make_views
from sere_jax.data.images.reading import DEFAULT_READING, ImageReading
from sere_jax.data.sources.example import Source
from sere_jax.evals.network import EvalError, Network
from sere_jax.evals.pictures import LeftOut, read_pictures
from sere_jax.ops.geometry import Points, Sampling, overlap_points
from sere_jax.ops.photometric import PhotometryParams, augment
from sere_jax.types import Features

# The keys of every protocol that looks at pairs of views.
VIEW_RULES: Mapping[str, Rule] = {
    "source": Rule(str),
    "views_of": Rule(str, choices=("checkpoint", "config")),
    "size": Rule(int, low=0),
    "points": Rule(int, low=2),
    "sampling": RULES["relation.sampling"],
    "backend": RULES["data.backend"],
    "random": Rule(bool),
    "seed": RULES["seed"],
    **{key: rule for key, rule in RULES.items() if key.startswith(("views.", "photometry."))},
}


class Pairs(NamedTuple):
    """Two crops each of b images, before any colour augmentation."""

    views: UInt8[np.ndarray, "b 2 S S c"]
    boxes: Float[np.ndarray, "b 2 4"]  # left, top, width, height in source pixels
    flips: Bool[np.ndarray, "b 2"]
    positions: Int[np.ndarray, " b"]  # in the source


class SeenPairs(NamedTuple):
    """The features of pairs, and the points of their overlap in each view."""

    views: Float[jax.Array, "b 2 S S c"]  # after all augmentation, normalised
    first: Features
    second: Features
    points: tuple[Points, Points]


def view_side(network: Network, size: int) -> int:
    """The side of a view in pixels: `size`, or the side that the network was trained on, cut to whole patches."""
    return size or max(network.patch, network.size // network.patch * network.patch)


def batch_count(images: int, batch_size: int) -> int:
    """Number of batches that `pairs` makes if all images can be read. No batch has a single image, which would have no partner."""
    return max(1, min(-(-images // batch_size), images // 2))


def pairs(
    source: Source,
    positions: Sequence[int],
    recipe: ViewRecipe,
    *,
    seed: int,
    batch_size: int,
    left_out: LeftOut,
    reading: ImageReading = DEFAULT_READING,
) -> Iterator[Pairs]:
    """Batches of about `batch_size` pairs, each of at least two images unless only one can be read.

    Images that cannot be read are added to `left_out`. A batch left with one image is joined with the next or the
    previous one, so batches of two may become one of three. A pair is a function of the seed and its position in the
    source.
    """
    waiting: list[tuple[int, ImageViews]] = []
    for part in np.array_split(np.asarray(positions, np.int32), batch_count(len(positions), batch_size)):
        made = [
            (picture.position, _two_views(picture.pixels, recipe, seed, picture.position, reading))
            for picture in read_pictures(source, part.tolist(), left_out, reading)
        ]
        if len(waiting) > 1 and len(made) > 1:
            yield _stacked(waiting)
            waiting = made
        else:
            waiting = waiting + made
    if waiting:
        yield _stacked(waiting)


def _two_views(pixels: np.ndarray, recipe: ViewRecipe, seed: int, position: int, reading: ImageReading) -> ImageViews:
    return make_views(pixels, recipe, np.random.default_rng([seed, position]), reading.backend)


def _stacked(made: Sequence[tuple[int, ImageViews]]) -> Pairs:
    views = [image_views for _, image_views in made]
    return Pairs(
        np.stack([image_views.global_views for image_views in views]),
        np.stack([image_views.boxes[:2] for image_views in views]),
        np.stack([image_views.flips[:2] for image_views in views]),
        np.array([position for position, _ in made], np.int32),
    )


def see(
    network: Network, pair: Pairs, photometry: Sequence[PhotometryParams], *, seed: int, size: int, sampling: Sampling = "endpoints"
) -> SeenPairs:
    """Augment both views on the device, run the network, and place size x size points on the overlap.

    The keys of the augmentation are folded from the seed and the image's position. Raises EvalError as `compiled_look`.
    """
    look = compiled_look(network, photometry, size, sampling)
    return look(network.params, pair.views, pair.boxes, pair.flips, view_keys(seed, pair.positions))


def view_keys(seed: int, positions: Int[np.ndarray, " b"]) -> jax.Array:
    """A typed PRNG key for each image."""
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.asarray(positions))


def compiled_look(network: Network, photometry: Sequence[PhotometryParams], size: int, sampling: Sampling) -> Callable[..., SeenPairs]:
    """The jitted function behind `see`, for many batches.

    Raises EvalError where the augmentation does not suit the network's channels.
    """
    kinds = [_with_norm(kind, network) for kind in photometry]
    if network.channels != 3 and any(kind.saturation > 0 or kind.hue > 0 or kind.gray_prob > 0 for kind in kinds):
        raise EvalError(
            f"photometry: found saturation, hue or grey for the {network.channels} channels of {network.name}; expected 3 channels, "
            "or photometry.saturation = photometry.hue = photometry.gray_prob = 0"
        )

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
