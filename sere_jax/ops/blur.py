"""Gaussian blur as Pillow defines it, as products with banded matrices."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Float


def blur_rows(rows: Float[jax.Array, "H c W"], sigma: Float[jax.Array, ""], max_sigma: float) -> Float[jax.Array, "H c W"]:
    """Blur of standard deviation `sigma` <= `max_sigma` pixels, border pixels repeated outwards, rounded to whole levels.

    As two matrix products K_y X K_x^T with banded matrices, which suits matrix units and needs no gather. Channels lie between rows and
    columns, so that both products take the image without a copy. The taps are those of Pillow's `GaussianBlur` (`blur_taps`). Pillow
    rounds between its passes, which makes a level or two. It repeats the border anew in each, which makes up to a dozen within six
    pixels of a corner.
    """
    taps = blur_taps(sigma, max_sigma)
    highest = jax.lax.Precision.HIGHEST  # the default of some accelerators would round the weights to 8 bits
    down = jnp.einsum("yh,hcw->ycw", _band(taps, rows.shape[0]), rows, precision=highest)
    both = jnp.einsum("ycw,xw->ycx", down, _band(taps, rows.shape[2]), precision=highest)
    return jnp.floor(jnp.clip(both, 0.0, 255.0) + 0.5)


def _band(taps: jax.Array, size: int) -> jax.Array:
    """The matrix [size, size] whose product with a line is its correlation with the taps; the line's ends are repeated outwards.

    As a sum over the taps, which is computed inside the product on an accelerator: a gather would not be.
    """
    place, radius = jnp.arange(size), taps.shape[0] // 2
    band = jnp.zeros((size, size))
    for i in range(taps.shape[0]):
        reads = jnp.clip(place + i - radius, 0, size - 1)
        band += jnp.where(reads[:, None] == place, taps[i], 0.0)
    return band


def blur_taps(sigma: Float[jax.Array, ""], max_sigma: float) -> Float[jax.Array, "taps"]:
    """The weights of Pillow's Gaussian: three passes of an extended box filter with the Gaussian's variance.

    Source: Gwosdek et al., Theoretical foundations of Gaussian convolution by extended box filtering (2011). One box has
    weight 1 at |o| <= l and a at |o| = l + 1, over 2 (l + a) + 1. With s = sigma^2 / 3 in each pass:
    l = floor((sqrt(12 s + 1) - 1) / 2), a = (2 l + 1) (l (l + 1) - 3 s) / (6 (s - (l + 1)^2)).
    """
    variance = sigma * sigma / 3.0
    whole = jnp.floor((jnp.sqrt(12.0 * variance + 1.0) - 1.0) / 2.0)
    part = (2.0 * whole + 1.0) * (whole * (whole + 1.0) - 3.0 * variance) / (6.0 * (variance - (whole + 1.0) ** 2))
    half = math.floor((math.sqrt(4.0 * max_sigma * max_sigma + 1.0) - 1.0) / 2.0) + 1
    offset = jnp.abs(jnp.arange(-half, half + 1, dtype=jnp.float32))
    box = jnp.where(offset <= whole, 1.0, jnp.where(offset == whole + 1.0, part, 0.0)) / (2.0 * (whole + part) + 1.0)
    return jnp.convolve(jnp.convolve(box, box, precision="highest"), box, precision="highest")
