"""Differences of the self-relations of two views of an image (Fig. 6 of the TPAMI paper).

All differences are computed from patch tokens of the backbone, so that they exist for methods without relation heads too.
The paper's norm is in a supplement that is not available; this is our interpretation. The plain distance is smallest for
a random network, whose relations are nearly uniform and hence nearly equal. Networks are therefore compared by the ratio of
the distance between two views of the same image to the distance between views of different images.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import softmax
from jaxtyping import Bool, Float

from sere_jax.losses.relation import channel_relation, spatial_relation
from sere_jax.ops.geometry import Points, sample
from sere_jax.types import Features

Tokens = Literal["pre", "post", "standardised"]
TOKENS: tuple[Tokens, ...] = ("pre", "post", "standardised")


class Standard(NamedTuple):
    """Mean and inverse standard deviation of each channel of the raw tokens of a set of images."""

    mean: Float[jax.Array, " d"]
    scale: Float[jax.Array, " d"]


class Variant(NamedTuple):
    """The tokens to relate, and the temperatures of the softmax over a row."""

    # Before (raw) or after (normalised) the final LayerNorm; or raw, each channel standardised over all images and then cut at 0: what the
    # losses relate, without the learned scale of a relation head.
    tokens: Tokens = "post"
    spatial_temperature: float = 1.0
    channel_temperature: float = 1.0
    heads: int = 1  # groups of channels with a spatial relation each; 1 is the paper's Eq. 2

    @property
    def label(self) -> str:
        """Title of a table: 'normalised tokens, t = 0.5 / 0.1'."""
        kind = {"pre": "raw", "post": "normalised", "standardised": "standardised"}[self.tokens]
        return f"{kind} tokens, t = {self.spatial_temperature:g} / {self.channel_temperature:g}" + (
            f", {self.heads} heads" if self.heads > 1 else ""
        )


class Differences(NamedTuple):
    """Per image: mean over relation rows of L1 distances, each in [0, 2]."""

    same: Float[jax.Array, " b"]  # between the two views of the image
    different: Float[jax.Array, " b"]  # between its first view and the second view of the next image
    uniform: Float[jax.Array, " b"]  # between the relation (mean of both views) and the uniform distribution
    valid: Bool[jax.Array, " b"]  # `same` and `uniform` count
    valid_pair: Bool[jax.Array, " b"]  # `different` counts


def row_distance(a: Float[jax.Array, "b *rows n"], b: Float[jax.Array, "b *rows n"]) -> Float[jax.Array, " b"]:
    """Mean over rows of sum_j |a_ij - b_ij|; 0 for equal relations, 2 for rows with disjoint support."""
    distance = jnp.sum(jnp.abs(a - b), axis=-1)
    return jnp.mean(distance.reshape(distance.shape[0], -1), axis=-1)


def differences(a: Float[jax.Array, "b *rows n"], b: Float[jax.Array, "b *rows n"], valid: Bool[jax.Array, " b"]) -> Differences:
    """Distances between relations of two views. The other image is the next of the batch, and the first for the last one."""
    n = a.shape[-1]
    uniform = (row_distance(a, jnp.full_like(a, 1 / n)) + row_distance(b, jnp.full_like(b, 1 / n))) / 2
    return Differences(row_distance(a, b), row_distance(a, jnp.roll(b, -1, axis=0)), uniform, valid, valid & jnp.roll(valid, -1))


def moments(features: Features) -> tuple[Float[jax.Array, " d"], Float[jax.Array, " d"]]:
    """Sums over all raw tokens, and of their squares, by channel."""
    tokens = jnp.asarray(features.patches_prenorm).astype(jnp.float32)
    return jnp.sum(tokens, axis=(0, 1, 2)), jnp.sum(jnp.square(tokens), axis=(0, 1, 2))


def standard(total: Float[np.ndarray, " d"], squares: Float[np.ndarray, " d"], count: int) -> Standard:
    """From sums of `count` tokens; BatchNorm's epsilon of 1e-5 is added to the variance.

    >>> standards = standard(np.array([4.0]), np.array([10.0]), 2)  # of the tokens 1 and 3
    >>> float(standards.mean[0]), round(float(standards.scale[0]), 4)
    (2.0, 1.0)
    """
    mean = total / count
    variance = np.maximum(squares / count - mean**2, 0.0)
    return Standard(jnp.asarray(mean, jnp.float32), jnp.asarray(1 / np.sqrt(variance + 1e-5), jnp.float32))


def related_tokens(features: Features, tokens: Tokens, over: Standard | None = None) -> Float[jax.Array, "b h w d"]:
    """The patch tokens of a variant. Raises ValueError for standardised ones without the statistics."""
    if tokens == "post":
        return jnp.asarray(features.patches)
    raw = jnp.asarray(features.patches_prenorm)
    if tokens == "pre":
        return raw
    if over is None:
        raise ValueError("standardised tokens need the mean and deviation of the set")
    return jax.nn.relu((raw.astype(jnp.float32) - over.mean) * over.scale)


def compare_views(
    a: Features, b: Features, points_a: Points, points_b: Points, variant: Variant, over: Standard | None = None
) -> dict[str, Differences]:
    """Differences of the relations that the losses use, with softmax(R / temperature) over each row.

    `over` are the statistics of the set, for standardised tokens.

    Spatial relations are taken on the overlap of the views of each image, channel relations on whole views. Sampling
    uses border padding, so that the edge of a view does not count as a difference.
    """
    maps = [related_tokens(f, variant.tokens, over) for f in (a, b)]
    sampled = [sample(m, p, padding="border", impl="separable") for m, p in zip(maps, (points_a, points_b), strict=True)]
    spatial = [softmax(spatial_relation(s, heads=variant.heads) / variant.spatial_temperature) for s in sampled]
    flat = [m.reshape(m.shape[0], -1, m.shape[-1]) for m in maps]
    channel = [softmax(channel_relation(f) / variant.channel_temperature) for f in flat]
    everywhere = jnp.ones_like(points_a.valid)
    return {
        "spatial": differences(spatial[0], spatial[1], points_a.valid),
        "channel": differences(channel[0], channel[1], everywhere),
    }
