"""InfoNCE against loops over pairs, on one device and on eight (SPEC 1.7)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sere_jax import sharding
from sere_jax.losses.contrastive import info_nce, similarity_logits
from tests.oracles import contrastive as oracle


def _pairs(b: int, e: int, seed: int = 0) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.normal(size=(b, e)) * rng.uniform(0.1, 10, size=(b, 1)), jnp.float32) for _ in range(2))


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.sampled_from([0.1, 0.2, 1.0]), st.integers(0, 99))
def test_every_query_against_every_key(b: int, e: int, temperature: float, seed: int):
    queries, keys = _pairs(b, e, seed)
    found = info_nce(similarity_logits(queries, keys, temperature))
    # float32 against float64; logits are at most 10.
    np.testing.assert_allclose(found, oracle.info_nce(np.asarray(queries), np.asarray(keys), temperature), rtol=1e-5, atol=1e-5)


def test_lengths_do_not_matter_and_nothing_is_not_a_number():
    queries, keys = _pairs(4, 3)
    np.testing.assert_allclose(similarity_logits(7 * queries, 0.1 * keys, 0.2), similarity_logits(queries, keys, 0.2), atol=1e-5)
    gradient = jax.grad(lambda q: info_nce(similarity_logits(q, keys, 0.2)))(jnp.zeros((4, 3)))
    assert np.all(np.isfinite(gradient))


def test_a_blind_guess_costs_the_logarithm_of_the_batch():
    same = jnp.ones((8, 3))
    np.testing.assert_allclose(info_nce(similarity_logits(same, same, 0.2)), math.log(8), rtol=1e-6)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_negatives_come_from_all_devices(what: str):
    """The batch cut over eight devices: the same loss and gradient as whole, and so nothing like eight batches of one."""
    queries, keys = _pairs(16, 4)

    def loss(queries: jax.Array, keys: jax.Array) -> jax.Array:
        return info_nce(similarity_logits(queries, keys, 0.2))

    function = loss if what == "loss" else jax.grad(loss)
    rows = sharding.batch_sharding(sharding.make_mesh())
    cut = jax.jit(function, in_shardings=(rows, rows))(*jax.device_put((queries, keys), rows))
    # The same sums in another order.
    np.testing.assert_allclose(cut, function(queries, keys), rtol=1e-5, atol=1e-6)
    if what == "loss":
        expected = oracle.info_nce(np.asarray(queries), np.asarray(keys), 0.2)
        np.testing.assert_allclose(cut, expected, rtol=1e-5)
