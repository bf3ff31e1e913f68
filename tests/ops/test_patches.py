"""Choosing patches by position, against a loop."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from sere_jax.ops.patches import gather_patches


def test_patches_by_position():
    rng = np.random.default_rng(0)
    patches = rng.normal(size=(2, 2, 3, 4, 5)).astype(np.float32)
    indices = rng.integers(-1, 12, size=(2, 2, 7)).astype(np.int32)
    found = gather_patches(jnp.asarray(patches), indices)
    for b, v, i in np.ndindex(2, 2, 7):
        row, column = divmod(max(int(indices[b, v, i]), 0), 4)
        np.testing.assert_array_equal(found[b, v, i], patches[b, v, row, column])


def test_the_gradient_returns_to_where_a_patch_came_from():
    patches = jnp.zeros((1, 1, 2, 2, 1))
    indices = np.array([[[3, 1, 3, -1]]], np.int32)
    gradient = jax.grad(lambda x: jnp.sum(gather_patches(x, indices)[..., 0] * jnp.array([1.0, 2.0, 4.0, 0.0])))(patches)
    np.testing.assert_array_equal(gradient.ravel(), [0, 2, 0, 5])
