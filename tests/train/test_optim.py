"""AdamW with DINO's rules, against a tensor-by-tensor restatement of the PyTorch loop (SPEC 1.5, 8.7, 8.8)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from sere_jax.build import pretraining
from sere_jax.train import optim
from tests import micro
from tests.oracles import optimizer as oracle

SHAPES = {
    "backbone": {"cls_token": (1, 1, 4), "pos_embed": (1, 3, 4), "norm": {"scale": (4,), "bias": (4,)}}
    | {f"blocks_{i}": {"fc": {"kernel": (4, 5), "bias": (5,)}, "norm1": {"scale": (4,)}} for i in range(2)},
    "heads_dino": {"mlp_0": {"kernel": (4, 3), "bias": (3,)}, "last_layer": {"direction": (6, 3), "scale": (6, 1)}},
}
DECAYED_BIASES = {"backbone/norm/bias", "backbone/blocks_0/fc/bias", "backbone/blocks_1/fc/bias", "heads_dino/mlp_0/bias"}
DECAYED = {f"backbone/blocks_{i}/fc/kernel" for i in range(2)} | {"backbone/cls_token", "backbone/pos_embed", "heads_dino/mlp_0/kernel"}
DECAYED |= {"heads_dino/last_layer/direction", "heads_dino/last_layer/scale"}  # the learned length is k x 1: two dimensions


def _draw(seed: int, scale: float = 1.0) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: jnp.asarray(scale * rng.normal(size=s), jnp.float32), SHAPES, is_leaf=lambda x: isinstance(x, tuple))


def _flat(tree: Any) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in flatten_dict(tree, sep="/").items()}


def _run(optimizer: Any, params: Any, gradients: list[Any], start: int = 0) -> tuple[Any, Any]:
    update = micro.jit(lambda g, s, p, step: optimizer.update(g, s, p, step=step))
    state = optimizer.init(params)
    for i, gradient in enumerate(gradients):
        updates, state = update(gradient, state, params, jnp.int32(start + i))
        params = jax.tree.map(jnp.add, params, updates)
    return params, state


def _adam_of(state: Any, label: str) -> Any:
    """The Adam state of the parameters that start together."""
    groups = optax.tree.get(state, "inner_states")
    return optax.tree.get(groups[label], "ScaleByAdamState")


def _late_prototypes(steps: int) -> Callable[[str], int]:
    return lambda path: steps if "last_layer" in path else 0


def _with_biases(path: str, dimensions: int) -> bool:
    return dimensions > 1 or path.endswith("bias")


RATES, DECAYS = [0.0, 0.01, 0.02, 0.015, 0.01, 0.005], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]


def _adamw(**options: Any) -> Any:
    read = lambda values: lambda step: jnp.asarray(values, jnp.float32)[step]  # noqa: E731
    return optim.adamw(optim.Rules(read(RATES), read(DECAYS), **options))


@functools.cache
def _expected(clip: float, decay_bias: bool, frozen: int, steps: int = 6) -> dict[str, oracle.AdamW]:
    tensors = {name: oracle.AdamW(value) for name, value in _flat(_draw(0)).items()}
    decayed = DECAYED | (DECAYED_BIASES if decay_bias else set())
    for i in range(steps):
        for name, gradient in _flat(_draw(i + 1)).items():
            absent = "last_layer" in name and i < frozen
            given = None if absent else oracle.clip(gradient.astype(np.float64), clip)
            tensors[name].step(given, lr=RATES[i], decay=DECAYS[i] if name in decayed else 0.0)
    return tensors


@pytest.mark.parametrize("decay_bias", [False, True])
@pytest.mark.parametrize(("clip", "frozen"), [(0.0, 0), (1.5, 2)])
def test_six_steps_are_those_of_the_loop(clip: float, frozen: int, decay_bias: bool):
    """Schedules, decay groups, clipping, and a last layer that starts late with a fresh bias correction."""
    decayed = _with_biases if decay_bias else optim.is_matrix
    optimizer = _adamw(clip_grad=clip, decayed=decayed, moves_from=_late_prototypes(frozen))
    params, _ = _run(optimizer, _draw(0), [_draw(i + 1) for i in range(6)])
    for name, value in _flat(params).items():
        np.testing.assert_allclose(value, _expected(clip, decay_bias, frozen)[name].value, atol=2e-6, err_msg=name)


def test_while_frozen_nothing_of_the_last_layer_moves():
    """Neither values nor moments nor their count nor decay (SPEC 8.7); everything else does."""
    optimizer = _adamw(moves_from=_late_prototypes(3))
    start = _draw(0)
    params, state = _run(optimizer, start, [_draw(i + 1) for i in range(3)])
    before, after = _flat(start), _flat(params)
    for name, value in after.items():
        assert np.array_equal(value, before[name]) == ("last_layer" in name), name
    frozen, rest = _adam_of(state, "from_step_3"), _adam_of(state, "from_step_0")
    assert int(frozen.count) == 0 and int(rest.count) == 3
    assert not any(np.any(leaf) for leaf in jax.tree.leaves((frozen.mu, frozen.nu)))
    # The first step it takes is lr * sign(gradient), as any first step of Adam, plus decay.
    gradient = _draw(9)
    updates, _ = micro.jit(lambda g, s, p: optimizer.update(g, s, p, step=jnp.int32(3)))(gradient, state, params)
    value, direction = (_flat(x)["heads_dino/last_layer/direction"] for x in (params, gradient))
    expected = -RATES[3] * (np.sign(direction) + DECAYS[3] * value)
    np.testing.assert_allclose(_flat(updates)["heads_dino/last_layer/direction"], expected, atol=1e-6)


def test_clipping_is_per_tensor():
    """SPEC 8.8: norms 10 and .1 with a limit of .3: the first becomes .3, the second stays."""
    large, small = jnp.full((4, 25), 1.0), jnp.full((10,), 0.1 / 10**0.5)
    found, _ = optim.clip_per_tensor(0.3).update({"a": large, "b": small}, None)
    np.testing.assert_allclose(jnp.linalg.norm(found["a"]), 0.3, rtol=1e-6)
    np.testing.assert_array_equal(found["b"], small)
    untouched, _ = optim.clip_per_tensor(0.0).update({"a": large}, None)
    np.testing.assert_array_equal(untouched["a"], large)


def test_clipping_zero_gradients_is_finite():
    found, _ = optim.clip_per_tensor(0.3).update({"a": jnp.zeros((2, 2))}, None)
    assert not np.any(found["a"])


@pytest.mark.parametrize("decay_bias", [False, True])
def test_stacked_blocks_are_clipped_and_decayed_a_layer_at_a_time(decay_bias: bool):
    optimizer = _adamw(clip_grad=0.5, decayed=_with_biases if decay_bias else optim.is_matrix)
    gradients = [_draw(i + 1) for i in range(3)]
    for gradient in gradients:  # a layer that explodes must not shrink its neighbour
        gradient["backbone"]["blocks_1"] = jax.tree.map(lambda g: 100 * g, gradient["backbone"]["blocks_1"])
    # The first step has rate 0; without clipping the moments of later ones would show it.
    unrolled, _ = _run(optimizer, _draw(0), gradients)
    shaped = lambda tree: {**tree, "backbone": micro.stacked(tree["backbone"])}  # noqa: E731
    scanned, _ = _run(optimizer, shaped(_draw(0)), [shaped(g) for g in gradients])
    micro.assert_close(scanned, shaped(unrolled), atol=1e-7)


def test_decayed_tensors_of_a_vit():
    """SPEC 8.7, counted by hand for depth 2 and both of SERE's global modules.

    Two or more dimensions: cls, position, patch kernel, 4 kernels a block, 3 kernels of the head's MLP, the directions, and
    2 predictors. Biases: the patch's, 4 + 2 (LayerNorms) a block, the last LayerNorm's, 3 of the MLP and 2 BatchNorms a module.
    Never: scales of 2 LayerNorms a block, the last one, and 2 BatchNorms a module.
    """
    shapes = flatten_dict(pretraining.abstract_state(micro.config(), micro.LENGTH).params, sep="/")

    def count(**options: bool) -> int:
        decayed = pretraining.optimizer_rules(micro.config({"optimizer": options}), micro.LENGTH).decayed
        return sum(decayed(path, leaf.ndim) for path, leaf in shapes.items())

    kernels, biases, scales = 3 + 2 * 4 + 3 + 1 + 2, 1 + 2 * 6 + 1 + 3 + 2 * 2, 2 * 2 + 1 + 2 * 2
    assert len(shapes) == kernels + biases + scales
    assert count(decay_bias=False, decay_scale=False) == kernels
    assert count(decay_bias=True, decay_scale=False) == kernels + biases
    assert count(decay_bias=False, decay_scale=True) == kernels + scales


def test_a_config_says_from_which_step_a_parameter_moves():
    """SPEC 8.7: prototypes after their epochs, the backbone after its own; fixed positions and a fixed patch embedding never."""
    config = micro.config({"optimizer": {"freeze_last_layer_epochs": 2, "freeze_backbone_epochs": 1}})
    moves_from = pretraining.optimizer_rules(config, pretraining.Steps(per_epoch=3, total=12)).moves_from
    first_steps = {"heads_dino/last_layer/direction": 6, "heads_dino/mlp_0/kernel": 0, "backbone/norm/bias": 3, "backbone/pos_embed": 3}
    assert {path: moves_from(path) for path in first_steps} == first_steps
    config.model.update(positions="sincos", freeze_patch_embed=True)
    moves_from = pretraining.optimizer_rules(config, micro.LENGTH).moves_from
    assert moves_from("backbone/pos_embed") == moves_from("backbone/patch_embed/kernel") == optim.NEVER
    assert moves_from("backbone/cls_token") != optim.NEVER


def test_a_fixed_length_of_prototypes_is_no_parameter():
    for norm, expected in ((True, False), (False, True)):
        config = micro.config({"head": {"norm_last_layer": norm}})
        params = pretraining.abstract_state(config, micro.LENGTH).params
        assert ("heads_dino/last_layer/scale" in flatten_dict(params, sep="/")) == expected


def test_a_skipped_step_does_not_shift_the_schedules():
    """The step counts, not the number of updates."""
    optimizer = _adamw()
    first, _ = _run(optimizer, _draw(0), [_draw(1)], start=4)
    expected = oracle.AdamW(_flat(_draw(0))["backbone/cls_token"])
    expected.step(_flat(_draw(1))["backbone/cls_token"], lr=RATES[4], decay=DECAYS[4])
    np.testing.assert_allclose(_flat(first)["backbone/cls_token"], expected.value, atol=1e-6)


def test_a_config_reaches_the_optimizer():
    """Freezing in epochs, clipping and bias decay as the config says, at the schedules' rates."""
    config = micro.config({"optimizer": {"freeze_last_layer_epochs": 2, "decay_bias": True, "clip_grad": 1e-4, "warmup_epochs": 0}})
    optimizer = pretraining.optimizer(config, pretraining.Steps(2, 8))
    params = _draw(0)
    state = optimizer.init(params)
    update, moved = micro.jit(lambda g, s, p, step: optimizer.update(g, s, p, step=step)), []
    for step in range(5):
        updates, state = update(_draw(1), state, params, jnp.int32(step))
        moved.append(bool(np.any(updates["heads_dino"]["last_layer"]["direction"])))
    assert moved == [False] * 4 + [True]
    rest = _adam_of(state, "from_step_0")
    gradient = _flat(_draw(1))["backbone/pos_embed"]
    expected = 0.1 * sum(0.9**i for i in range(5)) * 1e-4 * gradient / np.linalg.norm(gradient)
    np.testing.assert_allclose(_flat(rest.mu)["backbone/pos_embed"], expected, rtol=0.02)  # the norm's 1e-6 next to 1e-4 of a limit
