"""BatchNorm, SERE's module and DINO's head against NumPy loops (SPEC 1.2, 1.6); what they start with."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sere_jax.models.heads import BatchNorm, PrototypeHead, RelationHead
from tests import micro
from tests.oracles import dino as dino_oracle
from tests.oracles import vit as oracle

TOKENS = jnp.asarray(np.random.default_rng(0).normal(1.0, 2.0, size=(2, 3, 2, 2, 4)), jnp.float32)  # b v h w d


def _made(module: Any, seed: int = 0, **call: Any) -> Any:
    """Random parameters, and running statistics as at the start."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), TOKENS, **call))
    stats = jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.ones(x.shape) if path[-1].key == "var" else jnp.zeros(x.shape), shapes.get("batch_stats", {})
    )
    return {"params": micro.random_like(shapes["params"], seed), "batch_stats": stats}


def test_batch_norm_uses_the_statistics_of_the_whole_batch():
    variables = _made(BatchNorm())
    found, _ = BatchNorm().apply(variables, TOKENS, mutable=["batch_stats"])
    np.testing.assert_allclose(found, oracle.batch_norm(micro.copies(variables["params"]), np.asarray(TOKENS)), atol=1e-5)


def test_running_statistics_are_pytorchs():
    """Momentum 0.1, the variance unbiased; they start at 0 and 1 and do not influence the output."""
    variables = _made(BatchNorm())
    mean, var = np.zeros(4), np.ones(4)
    for i in (1, 2, 3):
        batch = TOKENS * i
        first, updated = BatchNorm().apply(variables, batch, mutable=["batch_stats"])
        flat = np.asarray(batch, np.float64).reshape(-1, 4)
        mean = np.array([oracle.running(old, column.sum() / len(column)) for old, column in zip(mean, flat.T, strict=True)])
        unbiased = [((column - column.mean()) ** 2).sum() / (len(column) - 1) for column in flat.T]
        var = np.array([oracle.running(old, new) for old, new in zip(var, unbiased, strict=True)])
        np.testing.assert_allclose(updated["batch_stats"]["mean"], mean, rtol=1e-5)
        np.testing.assert_allclose(updated["batch_stats"]["var"], var, rtol=1e-5)
        again, _ = BatchNorm().apply({"params": variables["params"], **updated}, batch, mutable=["batch_stats"])
        np.testing.assert_array_equal(first, again)
        variables = {"params": variables["params"], **updated}


def test_initialising_leaves_running_statistics_at_zero_and_one():
    stats = BatchNorm().init(jax.random.key(0), TOKENS)["batch_stats"]
    assert not np.any(stats["mean"]) and np.all(stats["var"] == 1)


@pytest.mark.parametrize("student", [True, False])
def test_relation_head(student: bool):
    variables = _made(RelationHead(), student=True)
    found, _ = RelationHead().apply(variables, TOKENS, student=student, mutable=["batch_stats"])
    expected = oracle.relation_head(micro.copies(variables["params"]), np.asarray(TOKENS), student=student)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert "bias" not in variables["params"]["predictor"]


def test_the_teachers_predictor_has_running_statistics_that_no_output_depends_on():
    """The authors' modules compute both relations on either side, so their checkpoints contain the teacher's statistics."""
    variables = _made(RelationHead(), student=True)
    student, teacher = (RelationHead().apply(variables, TOKENS, student=side, mutable=["batch_stats"]) for side in (True, False))
    assert np.any(teacher[1]["batch_stats"]["predictor_bn"]["mean"])
    micro.assert_equal(teacher[1], student[1])  # the same parameters and tokens
    z = oracle.relation_head(micro.copies(variables["params"]), np.asarray(TOKENS), student=False).reshape(-1, 4)
    projected = z @ np.asarray(variables["params"]["predictor"]["kernel"], np.float64)
    np.testing.assert_allclose(teacher[1]["batch_stats"]["predictor_bn"]["mean"], 0.1 * projected.mean(0), rtol=1e-4, atol=1e-6)
    changed = variables | {"params": variables["params"] | {"predictor": {"kernel": jnp.zeros((4, 4))}}}
    without, _ = RelationHead().apply(changed, TOKENS, student=False, mutable=["batch_stats"])
    np.testing.assert_array_equal(teacher[0], without)


def test_symmetric_students_have_no_predictor():
    variables = _made(RelationHead(symmetric=True), student=True)
    assert set(variables["params"]) == {"bn"}
    both = [RelationHead(symmetric=True).apply(variables, TOKENS, student=side, mutable=["batch_stats"])[0] for side in (True, False)]
    np.testing.assert_array_equal(*both)


def test_relation_head_starts_as_in_the_authors_code():
    """PyTorch's default for the predictor, U(-1/sqrt(d), 1/sqrt(d)); relations of random features then look as SPEC 1.4 says."""
    tokens = jax.random.normal(jax.random.key(3), (4, 64, 256))
    variables = micro.jit(lambda key: RelationHead().init(key, tokens, student=True))(jax.random.key(0))
    kernel = np.asarray(variables["params"]["predictor"]["kernel"])
    assert 0.98 / 16 < np.abs(kernel).max() <= 1 / 16
    assert abs(kernel.std() * 16 * np.sqrt(3) - 1) < 0.02
    for name in ("bn", "predictor_bn"):
        assert np.all(variables["params"][name]["scale"] == 1) and not np.any(variables["params"][name]["bias"])
    z, _ = RelationHead().apply(variables, tokens, student=False, mutable=["batch_stats"])
    flat = np.asarray(z).reshape(-1, 256)
    relation = flat.T @ flat / len(flat)
    np.testing.assert_allclose(np.diag(relation).mean(), 0.5, atol=0.01)
    np.testing.assert_allclose(relation[~np.eye(256, dtype=bool)].mean(), 1 / (2 * np.pi), atol=0.01)


HEAD = {"prototypes": 7, "hidden": 6, "bottleneck": 5}


@pytest.mark.parametrize("norm_last_layer", [True, False])
@pytest.mark.parametrize("layers", [1, 3])
def test_prototype_head(norm_last_layer: bool, layers: int):
    module = PrototypeHead(**HEAD, layers=layers, norm_last_layer=norm_last_layer)
    variables = _made(module, student=True)
    found = micro.jit(lambda p: module.apply({"params": p}, TOKENS, student=True))(variables["params"])
    expected = dino_oracle.head(micro.copies(variables["params"]), np.asarray(TOKENS).reshape(-1, 4))
    np.testing.assert_allclose((found.bottleneck @ found.prototypes.T).reshape(-1, 7), expected, atol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(found.bottleneck, axis=-1), 1.0, rtol=1e-5)
    lengths = np.linalg.norm(found.prototypes, axis=-1)
    assert np.allclose(lengths, 1.0, atol=1e-5) == norm_last_layer


def test_the_length_of_prototypes_is_a_parameter_only_where_it_is_trained():
    for norm, names in ((True, {"direction"}), (False, {"direction", "scale"})):
        params = _made(PrototypeHead(**HEAD, norm_last_layer=norm), student=True)["params"]
        assert set(params["last_layer"]) == names
    module = PrototypeHead(**HEAD, norm_last_layer=False)
    started = micro.jit(lambda key: module.init(key, TOKENS, student=True))(jax.random.key(0))["params"]
    assert np.all(started["last_layer"]["scale"] == 1)


def test_with_fixed_length_only_directions_receive_a_gradient():
    """The gradient of a row is orthogonal to it: its length does not matter."""
    module = PrototypeHead(**HEAD)
    params = _made(module, student=True)["params"]
    gradient = micro.jit(jax.grad(lambda p: jnp.sum(jnp.sin(module.apply({"params": p}, TOKENS, student=True).prototypes))))(params)
    rows = params["last_layer"]["direction"]
    np.testing.assert_allclose(jnp.sum(gradient["last_layer"]["direction"] * rows, -1), 0.0, atol=1e-5)


def test_a_token_of_zeros_has_a_finite_gradient():
    module = PrototypeHead(**HEAD, layers=1)
    params = {**_made(module, student=True)["params"], "mlp_0": {"kernel": jnp.ones((4, 5)), "bias": jnp.zeros(5)}}
    total = lambda x: jnp.sum(module.apply({"params": params}, x, student=True).bottleneck)  # noqa: E731
    value, gradient = micro.jit(jax.value_and_grad(total))(jnp.zeros((1, 4)))
    assert value == 0.0 and np.all(np.isfinite(gradient))


def test_prototype_head_starts_as_in_the_reference():
    """N(0, .02) and zero biases; prototypes U(-1/16, 1/16) for a bottleneck of 256, so that rows have length 1/sqrt(3)."""
    module = PrototypeHead(prototypes=512, hidden=256, bottleneck=256)
    params = micro.jit(lambda key: module.init(key, jnp.ones((1, 128)), student=True))(jax.random.key(0))["params"]
    for i in range(3):
        kernel = np.asarray(params[f"mlp_{i}"]["kernel"])
        assert abs(kernel.std() / 0.02 - 1) < 0.02 and np.abs(kernel).max() > 3.5 * 0.02
        assert not np.any(params[f"mlp_{i}"]["bias"])
    direction = np.asarray(params["last_layer"]["direction"])
    assert np.abs(direction).max() <= 1 / 16
    np.testing.assert_allclose(np.linalg.norm(direction, axis=1).mean(), 0.577, atol=0.005)
