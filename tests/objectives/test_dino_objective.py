"""DINO's objective: logits from bottleneck and prototypes, the center before and after, the teacher's temperature by epoch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sere_jax.build import pretraining
from sere_jax.types import PrototypeOutput
from tests import micro
from tests.oracles import dino as oracle

K, E, BATCH = 9, 5, 3
CHANGES = {
    "head": {"prototypes": K},
    "dino": {"warmup_teacher_temp": 0.04, "teacher_temp": 0.07, "warmup_teacher_temp_epochs": 3, "center_momentum": 0.8},
}


def _setting(local_count: int):
    config = micro.config(CHANGES, local_count=local_count, recipe="dino")
    method = pretraining.objective(config, micro.LENGTH)
    rng = np.random.default_rng(local_count)

    def output(views: int) -> PrototypeOutput:
        return PrototypeOutput(*(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((BATCH, views, E), (K, E))))

    outputs = {request: output(2 if request.views == "global" else local_count) for request in method.requests}
    # Student's global and local crops pass one head: the same prototypes.
    first = next(iter(outputs.values())).prototypes
    outputs = {r: o if r.side == "teacher" else o._replace(prototypes=first) for r, o in outputs.items()}
    return method, outputs, micro.views(config, batch=BATCH)


def _logits(outputs, side: str) -> np.ndarray:
    parts = [np.einsum("bve,ke->bvk", o.bottleneck, o.prototypes) for r, o in outputs.items() if r.side == side]
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("local_count", [0, 1, 3])
def test_loss_and_center(local_count: int):
    method, outputs, views = _setting(local_count)
    np.testing.assert_array_equal(method.init()["dino"]["center"], np.zeros((1, K)))
    center = np.random.default_rng(5).normal(size=K).astype(np.float32)
    state = {"dino": {"center": jnp.asarray(center)[None]}}
    loss, statistics, metrics = micro.jit(method.apply)(outputs, views, state, jnp.int32(7))
    teacher, student = _logits(outputs, "teacher"), _logits(outputs, "student")
    # Step 7 lies in epoch 1 of steps 0..4, 5..9, ...: half way from .04 to .07. The loss sees the center as it was.
    terms = oracle.loss_terms(teacher, student, center, 0.055, 0.1)
    assert len(terms) == 2 * (2 + local_count) - 2
    np.testing.assert_allclose(loss, np.mean(terms), rtol=1e-5)
    after = oracle.next_center(center, teacher, 0.8)
    np.testing.assert_allclose(method.update(state, statistics)["dino"]["center"][0], after, atol=1e-6)
    np.testing.assert_allclose(metrics["center_norm"], np.linalg.norm(center), rtol=1e-5)
    assert metrics.keys() == {"dino", "teacher_entropy", "center_norm"}


def test_networks_that_say_nothing_give_the_references():
    method, outputs, views = _setting(2)
    nothing = jax.tree.map(jnp.zeros_like, outputs)
    metrics = micro.jit(method.apply)(nothing, views, method.init(), jnp.int32(0))[2]
    assert {name: float(metrics[name]) for name in method.references} == pytest.approx(dict(method.references), rel=1e-6)
    assert set(method.references.values()) == {np.log(K)}


def test_recipes_without_local_crops_ask_for_none():
    method, _, _ = _setting(0)
    assert all(request.views == "global" for request in method.requests)
