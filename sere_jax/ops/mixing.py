"""Mixup and CutMix: a batch is mixed with itself in reverse order, images and targets alike.

Sources: Zhang et al. 2018, mixup; Yun et al. 2019, CutMix; the choice between them per batch, as DeiT and MAE fine-tune.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Key
from scipy.special import betaincinv

from sere_jax.types import Array

_QUANTILES = 2049  # of the tables of Beta distributions


@dataclasses.dataclass(frozen=True)
class Mixing:
    """How a batch is mixed. All images of a batch share one draw.

    Attributes:
      mixup: alpha of the share lambda ~ Beta(alpha, alpha) of an image in its mixture; 0 = no mixup.
      cutmix: alpha of CutMix, where 1 - lambda is the area of the rectangle that comes from the other image; 0 = no CutMix.
      switch_prob: probability of CutMix where both are on.
      prob: probability that a batch is mixed at all.
    """

    mixup: float = 0.8
    cutmix: float = 1.0
    switch_prob: float = 0.5
    prob: float = 1.0

    @property
    def on(self) -> bool:
        """Whether any batch is mixed."""
        return self.prob > 0 and (self.mixup > 0 or self.cutmix > 0)


def mix(
    images: Float[Array, "b H W c"], targets: Float[Array, "b k"], key: Key[jax.Array, ""], mixing: Mixing
) -> tuple[Float[jax.Array, "b H W c"], Float[jax.Array, "b k"]]:
    """Mix image i with image b - 1 - i, and their targets in the same shares.

    w(pixel) image_i + (1 - w(pixel)) image_(b - 1 - i), with the weights of `draw_weights`; the share of the targets is the mean of w.
    """
    if not mixing.on:
        return jnp.asarray(images), jnp.asarray(targets)
    weights = draw_weights(key, images.shape[1], images.shape[2], mixing)
    share = jnp.mean(weights)
    images, targets, own = jnp.asarray(images), jnp.asarray(targets), weights[None, :, :, None]
    return images * own + images[::-1] * (1.0 - own), targets * share + targets[::-1] * (1.0 - share)


def draw_weights(key: Key[jax.Array, ""], height: int, width: int, mixing: Mixing) -> Float[jax.Array, "H W"]:
    """The weight of an image's own pixels in its mixture: lambda everywhere (mixup), or 0 in a rectangle and 1 elsewhere (CutMix)."""
    mixed, switch, beta, box = jax.random.split(key, 4)
    is_cutmix = jax.random.uniform(switch) < mixing.switch_prob if mixing.mixup > 0 and mixing.cutmix > 0 else mixing.cutmix > 0
    uniform = jax.random.uniform(beta)
    share = jnp.where(is_cutmix, _beta(uniform, mixing.cutmix), _beta(uniform, mixing.mixup))
    rows, columns = jax.random.uniform(box, (2,))
    cut = rectangle_weights(share, rows, columns, height, width)
    weights = jnp.where(is_cutmix, cut, share)
    return jnp.where(jax.random.uniform(mixed) < mixing.prob, weights, 1.0)


def _beta(uniform: Float[jax.Array, ""], alpha: float) -> Float[jax.Array, ""]:
    """A draw from Beta(alpha, alpha), made of a uniform one; 1 where alpha is 0.

    A table of quantiles: the rejection sampling of `jax.random.beta` takes ten seconds to compile on a CPU.
    """
    return jnp.interp(uniform, jnp.linspace(0.0, 1.0, _QUANTILES), jnp.asarray(_quantiles(alpha))) if alpha else jnp.ones(())


@functools.cache
def _quantiles(alpha: float) -> Float[np.ndarray, " n"]:
    return betaincinv(alpha, alpha, np.linspace(0.0, 1.0, _QUANTILES)).astype(np.float32)


def rectangle_weights(
    share: Float[Array, ""], down: Float[Array, ""], right: Float[Array, ""], height: int, width: int
) -> Float[jax.Array, "H W"]:
    """0 inside CutMix's rectangle, 1 outside.

    Its sides are floor(sqrt(1 - share)) of the image's, each halved and rounded down on both sides of the centre; the centre lies at the
    pixel floor(down x height), floor(right x width), and the image's edges cut the rectangle off.
    """

    def inside(place: Float[Array, ""], side: int) -> Float[jax.Array, " n"]:
        half = jnp.floor(side * jnp.sqrt(1.0 - share)) // 2
        centre, pixels = jnp.floor(place * side), jnp.arange(side)
        return ((pixels >= centre - half) & (pixels < centre + half)).astype(jnp.float32)

    return 1.0 - inside(down, height)[:, None] * inside(right, width)[None, :]
