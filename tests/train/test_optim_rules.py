"""SGD and LARS against the loops they restate; what is frozen; decay of everything (SPEC 1.7, 1.8)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sere_jax.train import optim
from tests import micro
from tests.oracles import contrastive as oracle
from tests.oracles.optimizer import AdamW, clip
from tests.train.test_optim import DECAYED, DECAYED_BIASES, DECAYS, RATES, _draw, _flat, _run


def _rules(**options: Any) -> optim.Rules:
    read = lambda values: lambda step: jnp.asarray(values, jnp.float32)[step]  # noqa: E731
    return optim.Rules(read(RATES), read(DECAYS), **options)


def _gradients(steps: int = 6) -> list[Any]:
    return [_draw(i + 1) for i in range(steps)]


def test_sgd_is_pytorchs():
    """Decay goes through the momentum, 1-D tensors are exempt, the prototypes start late, and each tensor is clipped by itself."""
    params, _ = _run(optim.sgd(_rules(clip_grad=1.5, freeze_last_layer_steps=2)), _draw(0), _gradients())
    for name, value in _flat(params).items():
        tensor = oracle.Sgd(_flat(_draw(0))[name])
        for i, gradient in enumerate(_gradients()):
            absent = "last_layer" in name and i < 2
            given = None if absent else clip(_flat(gradient)[name].astype(np.float64), 1.5)
            tensor.step(given, lr=RATES[i], decay=DECAYS[i] if name in DECAYED else 0.0)
        np.testing.assert_allclose(value, tensor.value, atol=5e-6, err_msg=name)


def _lars_start() -> Any:
    """One tensor is all zero: its trust ratio is 1."""
    params = _draw(0)
    params["heads_dino"]["mlp_0"]["kernel"] = jnp.zeros((4, 3))
    return params


def test_lars_scales_each_matrix_by_its_own_size():
    params, _ = _run(optim.lars(_rules(), trust_coefficient=0.01), _lars_start(), _gradients())
    for name, value in _flat(params).items():
        tensor = oracle.Lars(_flat(_lars_start())[name], trust=0.01)
        for i, gradient in enumerate(_gradients()):
            tensor.step(_flat(gradient)[name], lr=RATES[i], decay=DECAYS[i])
        np.testing.assert_allclose(value, tensor.value, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("make", [optim.sgd, optim.lars], ids=["sgd", "lars"])
def test_stacked_blocks_train_as_unrolled_ones(make: Any):
    gradients = _gradients(3)
    for gradient in gradients:
        gradient["backbone"]["blocks_1"] = jax.tree.map(lambda g: 100 * g, gradient["backbone"]["blocks_1"])
    unrolled, _ = _run(make(_rules(clip_grad=0.5)), _draw(0), gradients)
    shaped = lambda tree: {**tree, "backbone": micro.stacked(tree["backbone"])}  # noqa: E731
    scanned, _ = _run(make(_rules(clip_grad=0.5)), shaped(_draw(0)), [shaped(g) for g in gradients])
    micro.assert_close(scanned, shaped(unrolled), atol=1e-7)


def test_everything_is_decayed_where_both_switches_say_so():
    params, _ = _run(optim.adamw(_rules(decay_bias=True, decay_scale=True)), _draw(0), _gradients())
    assert set(_flat(params)) != DECAYED | DECAYED_BIASES
    for name, value in _flat(params).items():
        tensor = AdamW(_flat(_draw(0))[name])
        for i, gradient in enumerate(_gradients()):
            tensor.step(_flat(gradient)[name].astype(np.float64), lr=RATES[i], decay=DECAYS[i])
        np.testing.assert_allclose(value, tensor.value, atol=2e-6, err_msg=name)


def test_what_is_frozen_has_no_moments_and_does_not_move():
    frozen = ("backbone/pos_embed", "backbone/blocks_0/fc")
    optimizer = optim.adamw(_rules(frozen=frozen))
    params, state = _run(optimizer, _draw(0), _gradients(3))
    before = _flat(_draw(0))
    still = {name for name, value in _flat(params).items() if np.array_equal(value, before[name])}
    assert still == {"backbone/pos_embed", "backbone/blocks_0/fc/kernel", "backbone/blocks_0/fc/bias"}
    moments = {name for name in _flat(state) if "/mu/" in name}
    assert not any(part in name for name in moments for part in ("pos_embed", "blocks_0/fc/"))
    assert any("blocks_1/fc/kernel" in name for name in moments)


def test_no_gradient_reaches_what_is_frozen():
    params = _draw(0)
    total = lambda p: sum(jnp.sum(x**2) for x in jax.tree.leaves(optim.stop_frozen(p, ("backbone/norm",))))  # noqa: E731
    gradients = _flat(jax.grad(total)(params))
    assert {name for name, g in gradients.items() if not np.any(g)} == {"backbone/norm/scale", "backbone/norm/bias"}
