"""The products of a transformer with their own backward passes, laid out for XLA on a CPU.

XLA on a CPU fuses the producers of a transposed operand into the copy that transposes it. A gradient that both the input's and the
kernel's product read is then computed twice, and so is the sum of all earlier branches before a LayerNorm. An optimization barrier
makes such an array once. Other platforms fuse well, and get no barrier. Values and gradients are those of automatic differentiation,
up to the order of sums. `docs/performance.md` has what each part saves.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float


def _materialised(arrays: Any) -> Any:
    return jax.lax.platform_dependent(arrays, cpu=jax.lax.optimization_barrier, default=lambda x: x)


@jax.custom_vjp
def computed_once(x: jax.Array) -> jax.Array:
    """x itself; on a CPU neither x nor its gradient is computed again inside the operations that read them."""
    return _materialised(x)


computed_once.defvjp(lambda x: (_materialised(x), None), lambda _, gradient: (_materialised(gradient),))


def dense_product(inputs: jax.Array, kernel: jax.Array, dimension_numbers: Any, precision: Any = None, **options: Any) -> jax.Array:
    """[..., d] times [d, e], with the signature of `jax.lax.dot_general`, for `flax.linen.Dense(dot_general=dense_product)`.

    Raises ValueError for any other contraction.
    """
    if dimension_numbers != (((inputs.ndim - 1,), (0,)), ((), ())) or kernel.ndim != 2:
        raise ValueError(f"dense_product contracts the last axis of its inputs with the first of a kernel [d, e], not {dimension_numbers}")
    return _dense(inputs, kernel, precision)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dense(inputs: jax.Array, kernel: jax.Array, precision: Any) -> jax.Array:
    return jnp.matmul(inputs, kernel, precision=precision)


def _dense_forward(inputs: jax.Array, kernel: jax.Array, precision: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _dense(inputs, kernel, precision), (inputs, kernel)


def _dense_backward(precision: Any, saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    inputs, kernel = saved
    gradient = _materialised(gradient)
    of_inputs = jnp.matmul(gradient, kernel.T, precision=precision)
    rows, row_gradients = inputs.reshape(-1, inputs.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    return of_inputs, jnp.matmul(rows.T, row_gradients, precision=precision)


_dense.defvjp(_dense_forward, _dense_backward)


def attention_weights(queries: Float[jax.Array, "b m n e"], keys: Float[jax.Array, "b m n e"]) -> Float[jax.Array, "b m n n"]:
    """softmax(Q K^T / sqrt(e)) over the keys, in float32 whatever the dtype of its inputs."""
    logits = jnp.einsum("bmqe,bmke->bmqk", queries, keys, preferred_element_type=jnp.float32)
    return jax.nn.softmax(logits * queries.shape[-1] ** -0.5, axis=-1)


@jax.custom_vjp
def attend(
    queries: Float[jax.Array, "b m n e"], keys: Float[jax.Array, "b m n e"], values: Float[jax.Array, "b m n e"]
) -> Float[jax.Array, "b m n e"]:
    """softmax(Q K^T / sqrt(e)) V for each example and head; the softmax is float32, the products run in the inputs' dtype."""
    return _attend_forward(queries, keys, values)[0]


def _attend_forward(queries: jax.Array, keys: jax.Array, values: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    queries, keys, values = _materialised((queries, keys, values))
    weights = attention_weights(queries, keys)
    mixed = jnp.einsum("bmqk,bmke->bmqe", weights.astype(values.dtype), values)
    return mixed, (queries, keys, values, weights)


def _attend_backward(saved: tuple[jax.Array, ...], gradient: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """With w the weights and g the gradient: dV = w^T g, dL = w (g V^T - rowsum(w g V^T)) / sqrt(e), dQ = dL K, dK = dL^T Q.

    dK and dV are written as (Q^T dL)^T and (g^T w)^T: XLA on a CPU runs these products at twice the rate of the direct ones.
    """
    queries, keys, values, weights = saved
    gradient = _materialised(gradient)
    of_values = jnp.swapaxes(jnp.einsum("bmqe,bmqk->bmek", gradient, weights.astype(gradient.dtype)), -1, -2)
    of_weights = jnp.einsum("bmqe,bmke->bmqk", gradient, values, preferred_element_type=jnp.float32)
    of_logits = weights * (of_weights - jnp.sum(of_weights * weights, axis=-1, keepdims=True)) * queries.shape[-1] ** -0.5
    of_logits = _materialised(of_logits).astype(queries.dtype)
    of_queries = jnp.einsum("bmqk,bmke->bmqe", of_logits, keys)
    of_keys = jnp.swapaxes(jnp.einsum("bmqe,bmqk->bmek", queries, of_logits), -1, -2)
    return of_queries, of_keys, of_values


attend.defvjp(_attend_forward, _attend_backward)


def gelu(x: jax.Array) -> jax.Array:
    """x (1 + erf(x / sqrt(2))) / 2, the exact GELU as PyTorch computes it; `erf` is cheaper than JAX's `erfc`, and so is its gradient."""
    return x * (0.5 * (1.0 + jax.lax.erf(x * 0.5**0.5)))
