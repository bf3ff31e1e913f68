"""Smoothed targets and the cross-entropy with soft targets, against PyTorch's."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from sere_jax.losses.supervised import smoothed_targets, soft_cross_entropy


def test_smoothing_gives_off_and_on_values():
    targets = np.asarray(smoothed_targets(jnp.array([2, 0]), 10, 0.1))
    assert targets.sum(1) == pytest.approx([1, 1], abs=1e-6)
    assert targets[0, 2] == pytest.approx(1 - 0.1 + 0.01) and targets[1, 0] == pytest.approx(0.91)
    assert np.delete(targets[0], 2) == pytest.approx(np.full(9, 0.01))
    assert np.asarray(smoothed_targets(jnp.array([1]), 3)).tolist() == [[0, 1, 0]]


def test_cross_entropy_is_torchs_with_smoothing_and_with_mixed_targets():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 3, (6, 7)).astype(np.float32), rng.integers(0, 7, 6)
    expected = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels), label_smoothing=0.1)
    assert float(soft_cross_entropy(logits, smoothed_targets(jnp.asarray(labels), 7, 0.1))) == pytest.approx(expected.item(), rel=1e-6)
    mixed = rng.dirichlet(np.ones(7), 6).astype(np.float32)
    expected = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(mixed))
    assert float(soft_cross_entropy(logits, mixed)) == pytest.approx(expected.item(), rel=1e-6)


def test_uniform_logits_give_the_logarithm_of_the_classes():
    assert float(soft_cross_entropy(jnp.zeros((2, 5), jnp.bfloat16), smoothed_targets(jnp.array([0, 4]), 5, 0.1))) == pytest.approx(
        np.log(5)
    )
