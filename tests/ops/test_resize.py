"""Position embeddings of another size, against torch's bicubic interpolation restated pixel by pixel (SPEC section 0, 8.11)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sere_jax.ops.resize import bicubic_matrix, resize_position_embedding
from tests.oracles import bicubic


def _embedding(side: int, d: int = 3) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=(1, 1 + side * side, d)), jnp.float32)


@pytest.mark.parametrize("grid", [(6, 6), (14, 6), (7, 28), (20, 20), (1, 1)])
def test_resizing_is_dinos_with_its_tenth_of_a_patch(grid: tuple[int, int]):
    embedding = _embedding(14)
    scale = (grid[0] + 0.1) / 14, (grid[1] + 0.1) / 14
    expected = bicubic.interpolate(np.asarray(embedding[0, 1:]).reshape(14, 14, 3), grid, scale)
    found = np.asarray(resize_position_embedding(embedding, grid))
    assert found.shape == (1, 1 + grid[0] * grid[1], 3)
    np.testing.assert_allclose(found[0, 1:], expected.reshape(-1, 3), atol=1e-5)  # float32 sums of 16 products of order 1
    np.testing.assert_array_equal(found[:, 0], embedding[:, 0])


def test_first_output_of_14_to_6_by_hand():
    # It reads 0.5 * 14 / 6.1 - 0.5 = 0.647541: neighbours -1 (repeats 0), 0, 1, 2 at distances 1.647541, .647541, .352459, 1.352459.
    # Within 1 the kernel is 1.25 x^3 - 2.25 x^2 + 1, within 2 it is -.75 x^3 + 3.75 x^2 - 6 x + 3.
    weights = [bicubic.keys(x) for x in (1.647541, 0.647541, 0.352459, 1.352459)]
    np.testing.assert_allclose(weights, [-0.060331, 0.395954, 0.775219, -0.110843], atol=2e-6)
    expected = [weights[0] + weights[1], weights[2], weights[3]] + [0.0] * 11
    np.testing.assert_allclose(bicubic_matrix(14, 6)[0], expected, atol=2e-6)


def test_the_stored_size_is_returned_untouched():
    embedding = _embedding(14)
    assert resize_position_embedding(embedding, (14, 14)) is embedding
    # As many tokens in another shape are resized all the same.
    assert not np.allclose(resize_position_embedding(_embedding(4), (2, 8)), _embedding(4))


def test_a_constant_embedding_stays_constant():
    np.testing.assert_allclose(resize_position_embedding(jnp.ones((1, 197, 2)), (9, 5)), 1.0, atol=1e-5)


def test_a_grid_that_is_not_square_is_refused():
    with pytest.raises(ValueError, match="12 patch slots; expected a square"):
        resize_position_embedding(jnp.zeros((1, 13, 2)), (2, 2))
