"""Feature self-relation: similarity matrices of one image's features, and the cross-entropy between two of them.

Source: TPAMI paper sections 3.2 and 3.3. Everything is float32, products included. By default accelerators would use
bfloat16 or TF32, which is too coarse for a softmax at sharp temperatures.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

Scale = Literal["head", "width"]


def spatial_relation(features: Float[jax.Array, "*batch p d"], *, heads: int, scale: Scale = "head") -> Float[jax.Array, "*batch m p p"]:
    """Similarity of every point with every other, in each of m groups of channels.

    R[m] = F_m F_m^T / sqrt(d / m) with F_m the m-th block of d / m channels (`scale="head"`, the authors' code) or
    / sqrt(d) (`scale="width"`, the paper's equation 2). Raises ValueError where m does not divide d.
    """
    *batch, p, d = features.shape
    if d % heads:
        raise ValueError(f"relation heads = {heads} does not divide the feature width {d}")
    grouped = features.astype(jnp.float32).reshape(*batch, p, heads, d // heads)
    divisor = (d // heads if scale == "head" else d) ** 0.5
    return jnp.einsum("...qme,...kme->...mqk", grouped, grouped, precision="highest") / divisor


def channel_relation(features: Float[jax.Array, "*batch n d"]) -> Float[jax.Array, "*batch d d"]:
    """Similarity of every channel with every other over the n positions of a view: F^T F / n (equation 5)."""
    scaled = features.astype(jnp.float32) * features.shape[-2] ** -0.5
    return jnp.einsum("...nd,...ne->...de", scaled, scaled, precision="highest")


def relation_targets(relation: Float[jax.Array, "*batch r r"], temperature: float) -> Float[jax.Array, "*batch r r"]:
    """The teacher's relation as distributions over each row: softmax(R / temperature)."""
    return jax.nn.softmax(relation / temperature, axis=-1)


def relation_cross_entropy(
    targets: Float[jax.Array, "b *#heads r r"],
    student: Float[jax.Array, "b *#heads r r"],
    temperature: float = 1.0,
    counted: Bool[jax.Array, "b"] | None = None,
) -> Float[jax.Array, ""]:
    """-sum(targets * log_softmax(student / temperature)) over a row's entries, averaged over examples, heads and rows.

    `counted` selects the examples of the average, which is 0 when there are none. By default all count. A pair of disjoint views,
    whose sampled relation is zero, then contributes the constant ln(r), as in the authors' code.
    """
    rows = -jnp.sum(targets * jax.nn.log_softmax(student / temperature, axis=-1), axis=-1)
    per_example = jnp.mean(rows, axis=tuple(range(1, rows.ndim)))
    if counted is None:
        return jnp.mean(per_example)
    return jnp.sum(jnp.where(counted, per_example, 0.0)) / jnp.maximum(jnp.sum(counted), 1)
