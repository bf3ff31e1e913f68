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
from tests.train.test_optim import DECAYED, DECAYED_BIASES, DECAYS, RATES, _draw, _flat, _late_prototypes, _run


def _rules(**options: Any) -> optim.Rules:
    read = lambda values: lambda step: jnp.asarray(values, jnp.float32)[step]  # noqa: E731
    return optim.Rules(read(RATES), read(DECAYS), **options)


def _gradients(steps: int = 6) -> list[Any]:
    return [_draw(i + 1) for i in range(steps)]


def test_sgd_is_pytorchs():
    """Decay goes through the momentum, 1-D tensors are exempt, the prototypes start late, and each tensor is clipped by itself."""
    params, _ = _run(optim.sgd(_rules(clip_grad=1.5, moves_from=_late_prototypes(2))), _draw(0), _gradients())
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


@pytest.mark.parametrize("make", [optim.sgd, optim.lars, optim.adamw], ids=["sgd", "lars", "adamw"])
def test_a_layers_factor_multiplies_its_rate_stacked_or_not(make: Any):
    """A first step's update is proportional to the rate, decay included; later layers take 0.5 of what the plain rule does, or 2."""
    factors = {"blocks_0": 0.5, "blocks_1": 2.0}
    of_path = lambda path: jnp.array([0.5, 2.0]) if "/blocks/" in path else factors.get(path.split("/")[1], 1.0)  # noqa: E731
    shaped = lambda tree: {**tree, "backbone": micro.stacked(tree["backbone"])}  # noqa: E731
    params, gradient = _draw(0), _draw(1)

    def update(tree: Any, gradient: Any, **options: Any) -> Any:
        optimizer = make(_rules(**options))
        return micro.jit(lambda g, p: optimizer.update(g, optimizer.init(p), p, step=jnp.int32(1))[0])(gradient, tree)

    expected = update(params, gradient)
    for name, factor in factors.items():
        expected["backbone"][name] = jax.tree.map(lambda u, factor=factor: factor * u, expected["backbone"][name])
    micro.assert_close(update(params, gradient, factor=of_path), expected, rtol=1e-6)
    stacked = update(shaped(params), shaped(gradient), factor=of_path)
    micro.assert_close(stacked, shaped(expected), rtol=1e-5)  # LARS sums a layer's squares in another order


def test_a_vector_of_rates_trains_each_head_as_if_alone():
    rates = jnp.array([0.1, 0.02, 0.0])
    heads, gradients = jnp.arange(12.0).reshape(3, 4), jnp.ones((3, 4))
    rules = optim.Rules(lambda step: rates, lambda step: jnp.float32(0.0))
    optimizer = optim.sgd(rules)
    updates, _ = optimizer.update({"kernel": gradients}, optimizer.init({"kernel": heads}), {"kernel": heads}, step=jnp.int32(0))
    np.testing.assert_allclose(updates["kernel"], -np.repeat([[0.1], [0.02], [0.0]], 4, axis=1), rtol=1e-6)
    four = {"kernel": jnp.ones((4, 2))}
    with pytest.raises(ValueError, match=r"found shape \(3,\) for a parameter of shape \(4, 2\), expected \(4,\)"):
        optimizer.update(four, optimizer.init(four), four, step=jnp.int32(0))


def test_the_rules_say_what_is_decayed():
    params, _ = _run(optim.adamw(_rules(decayed=lambda path, dimensions: True)), _draw(0), _gradients())
    assert set(_flat(params)) != DECAYED | DECAYED_BIASES
    for name, value in _flat(params).items():
        tensor = AdamW(_flat(_draw(0))[name])
        for i, gradient in enumerate(_gradients()):
            tensor.step(_flat(gradient)[name].astype(np.float64), lr=RATES[i], decay=DECAYS[i])
        np.testing.assert_allclose(value, tensor.value, atol=2e-6, err_msg=name)


def test_what_is_frozen_has_no_moments_and_does_not_move():
    frozen = ("backbone/pos_embed", "backbone/blocks_0/fc/")
    optimizer = optim.adamw(_rules(moves_from=lambda path: optim.NEVER if path.startswith(frozen) else 0))
    params, state = _run(optimizer, _draw(0), _gradients(3))
    before = _flat(_draw(0))
    still = {name for name, value in _flat(params).items() if np.array_equal(value, before[name])}
    assert still == {"backbone/pos_embed", "backbone/blocks_0/fc/kernel", "backbone/blocks_0/fc/bias"}
    moments = {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree_util.tree_leaves_with_path(state)}
    assert not any(part in name for name in moments for part in ("pos_embed", "blocks_0/fc/"))
    assert any("blocks_1/fc/kernel" in name for name in moments)


def test_no_gradient_reaches_what_is_frozen():
    params, never = _draw(0), lambda path: optim.NEVER if path.startswith("backbone/norm/") else 0
    total = lambda p: sum(jnp.sum(x**2) for x in jax.tree.leaves(optim.stop_gradients(p, never)))  # noqa: E731
    gradients = _flat(jax.grad(total)(params))
    assert {name for name, g in gradients.items() if not np.any(g)} == {"backbone/norm/scale", "backbone/norm/bias"}
