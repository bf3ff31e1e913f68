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
from jax.nn import softmax
from jaxtyping import Bool, Float

from sere_jax.losses.relation import channel_relation, spatial_relation
from sere_jax.ops.geometry import Points, sample
from sere_jax.types import Features

Tokens = Literal["pre", "post"]
TOKENS: tuple[Tokens, ...] = ("pre", "post")


class Variant(NamedTuple):
    """The tokens to relate, and the temperatures of the softmax over a row."""

    tokens: Tokens = "post"  # before (raw) or after (normalised) the final LayerNorm
    spatial_temperature: float = 1.0
    channel_temperature: float = 1.0
    heads: int = 1  # groups of channels with a spatial relation each; 1 is the paper's Eq. 2

    @property
    def label(self) -> str:
        """Title of a table: 'normalised tokens, t = 0.5 / 0.1'."""
        kind = {"pre": "raw", "post": "normalised"}[self.tokens]
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


def compare_views(a: Features, b: Features, points_a: Points, points_b: Points, variant: Variant) -> dict[str, Differences]:
    """Differences of the relations that the losses use, with softmax(R / temperature) over each row.

    Spatial relations are taken on the overlap of the views of each image, channel relations on whole views. Sampling
    uses border padding, so that the edge of a view does not count as a difference.
    """
    maps = [jnp.asarray(f.patches if variant.tokens == "post" else f.patches_prenorm) for f in (a, b)]
    sampled = [sample(m, p, padding="border", impl="separable") for m, p in zip(maps, (points_a, points_b), strict=True)]
    spatial = [softmax(spatial_relation(s, heads=variant.heads) / variant.spatial_temperature) for s in sampled]
    flat = [m.reshape(m.shape[0], -1, m.shape[-1]) for m in maps]
    channel = [softmax(channel_relation(f) / variant.channel_temperature) for f in flat]
    everywhere = jnp.ones_like(points_a.valid)
    return {
        "spatial": differences(spatial[0], spatial[1], points_a.valid),
        "channel": differences(channel[0], channel[1], everywhere),
    }
