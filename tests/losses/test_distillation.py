"""DINO's loss and center against explicit loops over pairs of views (SPEC 1.6, 8.4)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sere_jax.losses.distillation import distillation_loss, entropy, teacher_probabilities, update_center
from tests.oracles import dino as oracle


def _logits(local: int, b: int = 3, k: int = 7) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(local)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    return draw(b, 2, k), draw(b, 2 + local, k), draw(k)


def _loss(teacher, student, center, t_teacher=0.04, t_student=0.1) -> jax.Array:
    targets = teacher_probabilities(jnp.asarray(teacher), jnp.asarray(center)[None], t_teacher)
    return distillation_loss(targets, jnp.asarray(student)[:, :2], jnp.asarray(student)[:, 2:], t_student)


@pytest.mark.parametrize(("local", "terms"), [(0, 2), (1, 4), (2, 6), (4, 10), (10, 22)])
def test_mean_over_all_pairs_of_different_views(local: int, terms: int):
    teacher, student, center = _logits(local)
    expected = oracle.loss_terms(teacher, student, center, 0.04, 0.1)
    assert len(expected) == terms  # 2 (2 + l) - 2
    np.testing.assert_allclose(_loss(teacher, student, center), np.mean(expected), rtol=1e-5)


@pytest.mark.parametrize("temperatures", [(0.04, 0.1), (0.1, 0.04), (1.0, 1.0)])
def test_each_temperature_divides_its_own_side(temperatures: tuple[float, float]):
    teacher, student, center = _logits(2)
    expected = np.mean(oracle.loss_terms(teacher, student, center, *temperatures))
    np.testing.assert_allclose(_loss(teacher, student, center, *temperatures), expected, rtol=1e-5)


def test_the_center_is_taken_from_the_teachers_logits():
    teacher, student, center = _logits(1)
    shifted = _loss(teacher + 5 * center, student, 5 * center)
    np.testing.assert_allclose(shifted, _loss(teacher, student, 0 * center), rtol=1e-4)


def test_uniform_networks_give_ln_k():
    value = _loss(*(np.zeros(shape, np.float32) for shape in ((3, 2, 7), (3, 4, 7), (7,))))
    np.testing.assert_allclose(value, np.log(7), rtol=1e-6)


def test_center_is_an_average_of_the_batchs_means():
    teacher, _, center = _logits(0)
    found = update_center(jnp.asarray(center)[None], jnp.mean(teacher, (0, 1)), 0.9)
    np.testing.assert_allclose(found[0], oracle.next_center(center, teacher, 0.9), atol=1e-6)


def test_low_precision_logits_are_softmaxed_in_float32():
    teacher, student, center = _logits(2)
    low = [jnp.asarray(x, jnp.bfloat16) for x in (teacher, student)]
    exact = _loss(*(x.astype(jnp.float32) for x in low), center)
    np.testing.assert_array_equal(_loss(*low, center), exact)


def test_entropy():
    np.testing.assert_allclose(entropy(jnp.full((2, 3, 8), 1 / 8)), np.log(8), rtol=1e-6)
    np.testing.assert_array_equal(entropy(jnp.eye(8)), 0.0)
    np.testing.assert_allclose(entropy(jnp.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])), np.log(2) / 2, rtol=1e-6)
