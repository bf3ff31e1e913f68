"""The products' own backward passes against automatic differentiation of their formulas, and their barriers by platform."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy.special import erf, log_softmax

from sere_jax.ops.products import attend, attention_weights, computed_once, dense_product, gelu


def _normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def _attention_by_formula(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """One query at a time, as in the equation."""

    def one(query: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
        scores = jnp.exp(keys @ query / jnp.sqrt(query.size))
        return scores @ values / jnp.sum(scores)

    return jax.vmap(jax.vmap(jax.vmap(one, (0, None, None))))(q, k, v)


def test_attention_and_its_gradients_are_those_of_the_formula() -> None:
    q, k, v, weight = (_normal(i, 2, 3, 7, 4) for i in range(4))
    results = [
        jax.value_and_grad(lambda q, k, v, f=f: jnp.sum(f(q, k, v) * weight), argnums=(0, 1, 2))(q, k, v)
        for f in (attend, _attention_by_formula)
    ]
    chex.assert_trees_all_close(*results, rtol=1e-5, atol=1e-5)  # float32 sums of up to 168 terms, in another order


def test_attention_weights_are_a_softmax_over_keys() -> None:
    q, k = _normal(0, 2, 3, 5, 4), _normal(1, 2, 3, 5, 4)
    expected = np.exp(log_softmax(np.einsum("bmqe,bmke->bmqk", np.float64(q), np.float64(k)) / 2.0, axis=-1))
    np.testing.assert_allclose(attention_weights(q, k), expected, rtol=1e-5)


def test_attention_in_bfloat16_keeps_a_float32_softmax() -> None:
    q, k, v = (_normal(i, 1, 2, 9, 8).astype(jnp.bfloat16) for i in range(3))
    out, pullback = jax.vjp(attend, q, k, v)
    assert out.dtype == jnp.bfloat16 and {g.dtype for g in pullback(out)} == {jnp.dtype(jnp.bfloat16)}
    exact, exact_pullback = jax.vjp(_attention_by_formula, *(x.astype(jnp.float32) for x in (q, k, v)))
    # bfloat16 has 8 bits: two roundings of values up to about 2.
    np.testing.assert_allclose(np.float32(out), exact, atol=0.03)
    for gradient, expected in zip(pullback(out), exact_pullback(exact), strict=True):
        np.testing.assert_allclose(np.float32(gradient), expected, atol=0.06)


@pytest.mark.parametrize("shape", [(5, 6), (2, 3, 4, 6)])
def test_dense_product_is_the_plain_one(shape: tuple[int, ...]) -> None:
    x, weight = _normal(0, *shape), _normal(1, *shape[:-1], 4)
    plain, ours = nn.Dense(4), nn.Dense(4, dot_general=dense_product)
    params = plain.init(jax.random.key(2), x)
    results = [
        jax.value_and_grad(lambda p, x, layer=layer: jnp.sum(layer.apply(p, x) * weight), argnums=(0, 1))(params, x)
        for layer in (plain, ours)
    ]
    chex.assert_trees_all_close(*results, rtol=1e-5, atol=1e-6)


def test_dense_product_refuses_other_contractions() -> None:
    with pytest.raises(ValueError, match="last axis"):
        dense_product(jnp.ones((3, 4)), jnp.ones((3, 4)), (((0,), (0,)), ((), ())))


def test_gelu_is_exact() -> None:
    x = np.linspace(-6, 6, 41, dtype=np.float32)
    # 1 + erf(x) loses digits far left of 0, where the value is small: the error is one of a float32 near 1, times x.
    np.testing.assert_allclose(gelu(jnp.asarray(x)), 0.5 * x * (1 + erf(np.float64(x) / np.sqrt(2))), rtol=1e-6, atol=4e-7)
    slopes = jax.vmap(jax.grad(gelu))(jnp.asarray(x))
    y = np.float64(x)
    np.testing.assert_allclose(slopes, 0.5 * (1 + erf(y / np.sqrt(2))) + y * np.exp(-y * y / 2) / np.sqrt(2 * np.pi), rtol=1e-5, atol=4e-7)


def test_barriers_are_for_cpus_alone() -> None:
    def loss(x: jax.Array) -> jax.Array:
        return jnp.sum(computed_once(jnp.tanh(x)) ** 2)

    traced = jax.jit(jax.grad(loss)).trace(jnp.ones(3))
    counts = {p: traced.lower(lowering_platforms=(p,)).as_text().count("optimization_barrier") for p in ("cpu", "tpu", "cuda")}
    assert counts == {"cpu": 2, "tpu": 0, "cuda": 0}
