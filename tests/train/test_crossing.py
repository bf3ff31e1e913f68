"""Gradients of copies, summed once: the same numbers as the compiler's own sums, with fewer crossings. Eight fake devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sere_jax import sharding
from sere_jax.commands import hlo
from sere_jax.train.crossing import Crossing
from sere_jax.train.update import LossOutput, mean_gradients
from tests import micro

MESH = sharding.make_mesh(2)
PARAMS = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)}
ROWS = np.random.default_rng(1).normal(size=(32, 3)).astype(np.float32)


def _loss(params, running, batch, keys):
    """Two products with the same parameters, whole or a copy for each device."""
    w = params["w"] if params["w"].ndim == 3 else params["w"][None]
    rows = batch.reshape(w.shape[0], -1, 3)
    value = jnp.mean(jnp.tanh(jnp.einsum("rbi,rij->rbj", rows, w)) ** 2) + jnp.mean(jnp.einsum("rbi,rij->rbj", rows[:, ::2], w) ** 2)
    return value, LossOutput(running, {})


def _gradient(crossing: Crossing | None, parts: int) -> tuple[jax.Array, str]:
    def run(params, rows):
        return mean_gradients(_loss, params, {}, rows, jnp.zeros(len(rows)), parts, crossing)[0]["w"]

    everywhere, cut = sharding.replicated(MESH), sharding.batch_sharding(MESH)
    step = jax.jit(run, in_shardings=(everywhere, cut), out_shardings=everywhere, compiler_options=micro.FAST_COMPILE)
    compiled = step.lower(PARAMS, ROWS).compile()
    return compiled(jax.device_put(PARAMS, everywhere), jax.device_put(ROWS, cut)), compiled.as_text()


@pytest.mark.parametrize("parts", [1, 2])
def test_the_gradient_is_the_same_and_crosses_once(parts: int):
    expected, _ = _gradient(None, parts)
    found, text = _gradient(Crossing(MESH), parts)
    np.testing.assert_allclose(found, expected, atol=1e-7)  # sums of 32 float32 products in another order
    crossed = [one for one in hlo.collectives(hlo.parse(text), dict(MESH.shape)) if one.array.shape[-2:] == (3, 4)]
    assert [(one.kind, one.runs, one.axis) for one in crossed] == [("all-reduce", 1, "data+fsdp")]


def test_bfloat16_rounds_what_crosses_alone():
    copies = jnp.asarray(np.random.default_rng(2).normal(size=(8, 5)), jnp.float32)
    found = Crossing(MESH, jnp.bfloat16).sum({"w": copies})["w"]
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, jnp.sum(copies.astype(jnp.bfloat16), axis=0).astype(jnp.float32))
    np.testing.assert_allclose(found, copies.sum(0), atol=8 * 4 * 2.0**-8)  # eight numbers below 4, 8 bits each
