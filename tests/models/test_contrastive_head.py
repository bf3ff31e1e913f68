"""MoCo v3's projector and predictor against NumPy, a view at a time (SPEC 1.7)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sere_jax.models.heads import ContrastiveHead
from tests import micro
from tests.oracles import contrastive as oracle
from tests.oracles import vit

TOKENS = jnp.asarray(np.random.default_rng(0).normal(1.0, 2.0, size=(6, 2, 4)), jnp.float32)  # b v d
HEADS = {"vit": ContrastiveHead(3, 7, 5), "resnet": ContrastiveHead(2, 7, 5, predictor_last_norm=False)}


def _made(head: ContrastiveHead) -> Any:
    shapes = jax.eval_shape(lambda: head.init(jax.random.key(0), TOKENS, student=True))
    stats = jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.ones(x.shape) if path[-1].key == "var" else jnp.zeros(x.shape), shapes["batch_stats"]
    )
    return {"params": micro.random_like(shapes["params"]), "batch_stats": stats}


@pytest.mark.parametrize("student", [True, False])
@pytest.mark.parametrize("kind", HEADS)
def test_projector_and_the_students_predictor(kind: str, student: bool):
    head = HEADS[kind]
    variables = _made(head)
    found, _ = head.apply(variables, TOKENS, student=student, mutable=["batch_stats"])
    params = micro.copies(variables["params"])
    for view in range(2):
        expected = oracle.mlp(params["projector"], np.asarray(TOKENS[:, view]), last_norm=True)
        if student:
            expected = oracle.mlp(params["predictor"], expected, last_norm=kind == "vit")
        np.testing.assert_allclose(found[:, view], expected, atol=2e-5)


def test_parameters():
    """No bias anywhere, no scale in the last BatchNorm; the counts of the full size: C 4096 + 4096 4096 + 4096 256 and so on."""
    params = _made(HEADS["vit"])["params"]
    assert set(params["projector"]) == {"mlp_0", "bn_0", "mlp_1", "bn_1", "mlp_2"}
    assert set(params["predictor"]) == {"mlp_0", "bn_0", "mlp_1"}
    assert all(set(layer) in ({"kernel"}, {"scale", "bias"}) for half in params.values() for layer in half.values())
    full = jax.eval_shape(lambda: ContrastiveHead().init(jax.random.key(0), jnp.zeros((2, 2, 384)), student=True))["params"]
    sizes = {half: sum(leaf.size for leaf in jax.tree.leaves(full[half])) for half in full}
    assert sizes == {"projector": 384 * 4096 + 4096**2 + 4096 * 256 + 4 * 4096, "predictor": 2 * 256 * 4096 + 2 * 4096}


def test_running_statistics_take_the_views_one_after_the_other():
    head, variables = HEADS["vit"], _made(HEADS["vit"])
    _, updated = head.apply(variables, TOKENS, student=False, mutable=["batch_stats"])
    kernel = np.asarray(variables["params"]["projector"]["mlp_0"]["kernel"], np.float64)
    mean = np.zeros(7)
    for view in range(2):
        mean = vit.running(mean, (np.asarray(TOKENS[:, view], np.float64) @ kernel).mean(0))
    np.testing.assert_allclose(updated["batch_stats"]["projector"]["bn_0"]["mean"], mean, atol=1e-5)
    micro.assert_equal(updated["batch_stats"]["predictor"], variables["batch_stats"]["predictor"])


def test_it_starts_as_pytorchs_linear_layers():
    params = HEADS["vit"].init(jax.random.key(0), TOKENS, student=True)["params"]
    for half, widths in (("projector", (4, 7, 7)), ("predictor", (5, 7))):
        for i, inputs in enumerate(widths):
            largest = float(jnp.abs(params[half][f"mlp_{i}"]["kernel"]).max())
            assert 0.7 * inputs**-0.5 < largest <= inputs**-0.5
