"""Random erasing: a rectangle of an image is replaced by noise. Source: Zhong et al. 2020, with the settings of DeiT and MAE."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Key

from sere_jax.types import Array

AREA = (0.02, 1 / 3)  # of the rectangle, as a share of the image's
ASPECT = (0.3, 1 / 0.3)  # height / width
_ATTEMPTS = 10


def erase(images: Float[Array, "b H W c"], keys: Key[jax.Array, "b"], prob: float) -> Float[jax.Array, "b H W c"]:
    """Replace a rectangle of each normalised image, with probability `prob`, by noise N(0, 1) for every pixel and channel."""
    if not prob:
        return jnp.asarray(images)

    def one(image: Float[jax.Array, "H W c"], key: Key[jax.Array, ""]) -> Float[jax.Array, "H W c"]:
        where, noise = jax.random.split(key)
        inside = draw_rectangle(where, image.shape[0], image.shape[1], prob)
        return jnp.where(inside[..., None], jax.random.normal(noise, image.shape), image)

    return jax.vmap(one)(jnp.asarray(images), keys)


def draw_rectangle(key: Key[jax.Array, ""], height: int, width: int, prob: float = 1.0) -> Bool[jax.Array, "H W"]:
    """True inside a random rectangle; nowhere with probability 1 - `prob`.

    The share of its area is uniform in `AREA`, log(height / width) uniform in log `ASPECT`; sides are sqrt(area r) and sqrt(area / r),
    rounded. The first of ten draws that is smaller than the image in both directions is put at a random place.
    """
    chosen, sizes, places = jax.random.split(key, 3)
    share, ratio = jax.random.uniform(sizes, (2, _ATTEMPTS))
    area = height * width * (AREA[0] + (AREA[1] - AREA[0]) * share)
    low, high = map(math.log, ASPECT)
    aspect = jnp.exp(low + (high - low) * ratio)
    rows, columns = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))
    fits = (rows < height) & (columns < width)
    first = jnp.argmax(fits)
    down, right = jax.random.uniform(places, (2,))

    def inside(size: jax.Array, place: jax.Array, side: int) -> Bool[jax.Array, " n"]:
        start = jnp.floor(place * (side - size + 1))
        return (jnp.arange(side) >= start) & (jnp.arange(side) < start + size)

    rectangle = inside(rows[first], down, height)[:, None] & inside(columns[first], right, width)[None, :]
    return rectangle & jnp.any(fits) & (jax.random.uniform(chosen) < prob)
