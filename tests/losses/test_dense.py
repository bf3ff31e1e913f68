"""Patch losses and the batch relation as plain functions: averages over counted tokens, Barlow against loops."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sere_jax.losses.batch_relation import barlow_loss
from sere_jax.losses.dense import mean_of_counted, token_cross_entropy
from sere_jax.ops.normalise import standardise
from tests.oracles import patch as oracle


def test_a_view_is_the_mean_of_its_counted_tokens_and_0_without_one():
    rng = np.random.default_rng(0)
    student = rng.normal(size=(1, 2, 3, 5)).astype(np.float32)
    teacher = np.full((1, 2, 3, 5), 0.2, np.float32)
    counted = np.array([[[True, False, True], [False] * 3]])
    mean = mean_of_counted(token_cross_entropy(jnp.asarray(teacher), jnp.asarray(student), 0.5), jnp.asarray(counted))
    rows = [-0.2 * np.log(np.exp(row / 0.5) / np.exp(row / 0.5).sum()).sum() for row in student[0, 0].astype(np.float64)]
    np.testing.assert_allclose(mean, [[(rows[0] + rows[2]) / 2, 0.0]], rtol=1e-5)


def test_tokens_that_do_not_count_get_no_gradient_whatever_they_hold():
    logits = jnp.zeros((1, 1, 2, 3)).at[0, 0, 1].set(jnp.array([1e4, -1e4, 0.0]))
    counted = jnp.array([[[True, False]]])
    gradient = jax.grad(lambda x: jnp.sum(mean_of_counted(token_cross_entropy(jnp.full_like(x, 1 / 3), x, 0.1), counted)))(logits)
    assert np.all(np.isfinite(gradient)) and not np.any(gradient[0, 0, 1])


@pytest.mark.parametrize("off_diagonal", [0.0, 0.0051, 1.0])
def test_barlow(off_diagonal: float):
    rng = np.random.default_rng(1)
    first, second = (rng.normal(3.0, 2.0, size=(7, 4)).astype(np.float32) for _ in range(2))
    found = barlow_loss(jnp.asarray(first), jnp.asarray(second), off_diagonal)
    np.testing.assert_allclose(found, oracle.barlow(first, second, off_diagonal), rtol=1e-5)


def test_equal_decorrelated_embeddings_cost_nothing():
    signs = np.array([[a, b, a * b] for a in (1, -1) for b in (1, -1)], np.float32)  # zero means, no correlations
    assert float(barlow_loss(jnp.asarray(5 * signs + 2), jnp.asarray(signs), 0.1)) == pytest.approx(0, abs=1e-8)


def test_a_constant_channel_stays_finite():
    found = standardise(jnp.ones((4, 2))).values
    np.testing.assert_array_equal(found, np.zeros((4, 2)))
