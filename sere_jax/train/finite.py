"""Whether the numbers of a state are finite, and of a size that training can go on from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from sere_jax.types import PyTree


def is_sound(tree: PyTree) -> jax.Array:
    """Whether all floating-point numbers of a tree are finite, and so is the sum of their squares in float32.

    That sum leaves float32 when one number is above 1.8e19, which nothing in a training comes near.

    >>> bool(is_sound({"a": jnp.ones(3)})), bool(is_sound({"a": jnp.array([1.0, 1e30])})), bool(is_sound(jnp.int32(7)))
    (True, False, True)
    """
    leaves = [leaf for leaf in map(jnp.asarray, jax.tree.leaves(tree)) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    squares = [jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in leaves]
    # A running sum: XLA turns the plain one into a chain of additions and repeats the chain in the fusion of every leaf that is chosen by
    # the answer. A step's code, and the time to compile it, would grow with the square of the number of leaves.
    return jnp.isfinite(jnp.cumsum(jnp.stack([*squares, jnp.zeros(())]))[-1])


def unsound_leaves(named: Mapping[str, Any]) -> list[str]:
    """The names of the leaves that are not sound. With several processes all call it alike."""
    # On CPUs one by one, as in `digest.digests`: sums over several devices, started together, can wait for each other for ever.
    together = jax.default_backend() != "cpu"
    flags = [_is_sound(leaf) if together else bool(_is_sound(leaf)) for leaf in named.values()]
    return [name for name, flag in zip(named, flags, strict=True) if not flag]


_is_sound = jax.jit(is_sound)
