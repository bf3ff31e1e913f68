"""A 32-bit digest of an array's bits and positions that is the same however the array is cut over devices.

digest = sum_i mix(bits_i xor mix(i + 1)) mod 2**32, with `mix` a bijection of 32-bit words (the finaliser of MurmurHash3) and i the
row-major index. The sum is exact in any order, so no device needs another's elements. One changed element always changes
the digest; any other damage goes unseen with a chance of about 2**-32. (A plain sum of bits times odd factors would not do:
two flipped sign bits cancel.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import UInt32

_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}


def digests(named: Mapping[str, Any]) -> list[int]:
    """One digest a leaf, in order. Leaves are global `jax.Array`s (every process calls this alike) or NumPy arrays.

    Raises:
      TypeError: a leaf is no array of booleans, integers or real floats; its name is told.
    """
    for name, leaf in named.items():
        if not hasattr(leaf, "dtype") or not (
            leaf.dtype == bool or jnp.issubdtype(leaf.dtype, jnp.integer) or jnp.issubdtype(leaf.dtype, jnp.floating)
        ):
            kind = getattr(leaf, "dtype", type(leaf).__name__)
            raise TypeError(f"state leaf {name}: found {kind}, expected an array of booleans, integers or real floats")
    # All are dispatched before the first is fetched. Compiled once a shape, of which even a deep network has few.
    # But on CPUs one by one: sums over several devices, started together, can wait for each other's threads until XLA aborts.
    together = jax.default_backend() != "cpu"
    values = [_digest(_as_words(leaf)) if together else int(_digest(_as_words(leaf))) for leaf in named.values()]
    return [int(value) for value in jax.device_get(values)]


def _as_words(leaf: Any) -> Any:
    """64-bit NumPy arrays as pairs of 32-bit words: JAX would cut them to 32 bits."""
    if isinstance(leaf, (np.ndarray, np.generic)) and leaf.dtype.itemsize == 8:
        return np.ascontiguousarray(leaf).reshape(-1).view(np.uint32)
    return leaf


@jax.jit
def _digest(leaf: jax.Array) -> UInt32[jax.Array, ""]:
    if leaf.dtype == bool:
        leaf = leaf.astype(jnp.uint8)
    words = lax.bitcast_convert_type(leaf, _WORDS[leaf.dtype.itemsize]).astype(jnp.uint32)
    index = jnp.ones((), jnp.uint32)
    stride = 1
    for axis in reversed(range(words.ndim)):
        index = index + lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    return jnp.sum(_mix(words ^ _mix(index)), dtype=jnp.uint32)


def _mix(word: jax.Array) -> jax.Array:
    word = (word ^ (word >> 16)) * jnp.uint32(0x85EBCA6B)
    word = (word ^ (word >> 13)) * jnp.uint32(0xC2B2AE35)
    return word ^ (word >> 16)
