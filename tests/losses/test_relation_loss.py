"""Self-relations and their cross-entropy against loops over entries (SPEC 1.2, 1.4)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sere_jax.losses.relation import channel_relation, relation_cross_entropy, relation_targets, spatial_relation
from tests.oracles import sere as oracle

MAP = np.random.default_rng(0).normal(size=(3, 2, 6)).astype(np.float32)
TOKENS = jnp.asarray(MAP.reshape(6, 6))


@pytest.mark.parametrize("heads", [1, 2, 3, 6])
@pytest.mark.parametrize("scale", ["head", "width"])
def test_spatial_relation(heads: int, scale: str):
    found = spatial_relation(TOKENS, heads=heads, scale=scale)
    np.testing.assert_allclose(found, oracle.spatial_relation(MAP, heads, scale), atol=1e-5)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match=r"heads = 4 does not divide the feature width 6"):
        spatial_relation(TOKENS, heads=4)


@pytest.mark.parametrize("rows", [6, 2])
def test_channel_relation_divides_by_the_number_of_positions(rows: int):
    found = channel_relation(TOKENS[:rows])
    np.testing.assert_allclose(found, oracle.channel_relation(MAP.reshape(6, 6)[None, :rows]), atol=1e-5)


def _relations(seed: int = 1) -> tuple[jax.Array, jax.Array]:
    return tuple(jnp.asarray(x, jnp.float32) for x in np.random.default_rng(seed).normal(size=(2, 4, 3, 5, 5)))


@pytest.mark.parametrize("temperatures", [(0.5, 1.0), (1.0, 0.5), (0.1, 1.0)])
def test_cross_entropy(temperatures: tuple[float, float]):
    teacher, student = _relations()
    found = relation_cross_entropy(relation_targets(teacher, temperatures[0]), student, temperatures[1])
    np.testing.assert_allclose(found, oracle.relation_cross_entropy(np.asarray(teacher), np.asarray(student), *temperatures), rtol=1e-5)


def test_equal_relations_at_temperature_one_give_their_entropy():
    """SPEC 8.4."""
    relation, _ = _relations()
    p = np.exp([oracle.log_softmax(row) for row in np.asarray(relation).reshape(-1, 5)])
    np.testing.assert_allclose(relation_cross_entropy(relation_targets(relation, 1.0), relation), -(p * np.log(p)).sum(1).mean(), rtol=1e-5)


@pytest.mark.parametrize(("entries", "expected"), [(169, 5.130), (36, 3.584), (384, 5.951)])
def test_a_uniform_student_gives_the_logarithm_of_the_row(entries: int, expected: float):
    teacher = relation_targets(jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, entries, entries)), jnp.float32), 0.5)
    np.testing.assert_allclose(relation_cross_entropy(teacher, jnp.zeros_like(teacher)), expected, atol=5e-4)


def test_examples_that_do_not_count_are_left_out_of_the_mean():
    teacher, student = _relations()
    targets, counted = relation_targets(teacher, 0.5), jnp.array([True, False, True, False])
    found = relation_cross_entropy(targets, student, counted=counted)
    np.testing.assert_allclose(found, relation_cross_entropy(targets[::2], student[::2]), rtol=1e-6)
    gradient = jax.grad(lambda s: relation_cross_entropy(targets, s, counted=counted))(student)
    assert not np.any(gradient[1::2]) and np.any(gradient[::2])
    assert float(relation_cross_entropy(targets, student, counted=jnp.zeros(4, bool))) == 0.0
