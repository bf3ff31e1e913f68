"""MoCo v3's two crossed terms, their weight, and who learns from them (SPEC 1.7)."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

from sere_jax.objectives.mocov3 import STUDENT, TEACHER, mocov3
from tests import micro
from tests.oracles import contrastive as oracle

VIEWS = micro.views(micro.config())  # nothing here looks at them
STEP = jnp.zeros((), jnp.int32)
METHOD = mocov3(temperature=0.2, batch_size=8)


def _outputs() -> dict:
    rng = np.random.default_rng(0)
    return {request: jnp.asarray(rng.normal(size=(8, 2, 5)), jnp.float32) for request in (STUDENT, TEACHER)}


def test_each_view_is_sought_among_the_other_views_keys():
    outputs = _outputs()
    loss, statistics, metrics = METHOD.apply(outputs, VIEWS, METHOD.init(), STEP)
    expected = oracle.mocov3(np.asarray(outputs[STUDENT]), np.asarray(outputs[TEACHER]), 0.2)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert statistics == METHOD.update({}, statistics) == {} and metrics["mocov3"] == loss


def test_references_are_those_of_a_blind_guess():
    same = {STUDENT: jnp.ones((8, 2, 5)), TEACHER: jnp.ones((8, 2, 5))}
    loss, _, _ = METHOD.apply(same, VIEWS, {}, STEP)
    np.testing.assert_allclose(loss, METHOD.references["mocov3"], rtol=1e-6)
    assert METHOD.references["mocov3"] == 4 * 0.2 * math.log(8)
    found = {STUDENT: jnp.stack([jnp.eye(8)] * 2, 1), TEACHER: jnp.stack([jnp.eye(8)] * 2, 1)}
    assert float(METHOD.apply(found, VIEWS, {}, STEP)[2]["mocov3_accuracy"]) == 1.0
