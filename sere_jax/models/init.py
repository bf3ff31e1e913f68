"""Initialisers that the field's recipes share and Flax does not have."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def uniform_fan_in(fan_in: int) -> Any:
    """PyTorch's default for Linear and Conv, weight and bias alike: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    bound = fan_in**-0.5

    def init(key: jax.Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
