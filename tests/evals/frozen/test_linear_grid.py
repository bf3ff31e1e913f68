"""The grid of linear classifiers against PyTorch's SGD, head by head, and on any number of devices."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from sere_jax.evals.frozen import linear_grid
from sere_jax.evals.frozen.linear_grid import GridSettings, Head
from sere_jax.evals.network import EvalError

torch.set_num_threads(1)  # of so small products more threads only wait for each other
CLASSES, WIDTH = 4, 10
COLUMNS = {"all": (0, WIDTH), "last": (6, WIDTH)}
SETTINGS = GridSettings(rates=(0.1, 3.0, 40.0), epochs=5, batch_size=32, weight_decay=1e-3, seed=2)


def data(images: int = 100) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, images).astype(np.int32)
    centres = rng.normal(size=(CLASSES, WIDTH))
    return (centres[labels] + rng.normal(size=(images, WIDTH))).astype(np.float32), labels


def by_torch(features: np.ndarray, labels: np.ndarray, rate: float, start: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """One head by PyTorch's cross-entropy and gradients on the same batches, the rate by DINO's cosine of whole epochs.

    SGD with momentum is written out as PyTorch's manual states it; `torch.optim` takes ten seconds to import.
    """
    weights = [torch.tensor(start, requires_grad=True), torch.zeros(CLASSES, requires_grad=True)]
    momenta = [torch.zeros_like(weight) for weight in weights]
    for epoch in range(SETTINGS.epochs):
        now = rate * SETTINGS.batch_size / 256 * (1 + math.cos(math.pi * epoch / SETTINGS.epochs)) / 2
        for rows in linear_grid.batches(len(labels), SETTINGS.batch_size, SETTINGS.seed, epoch):
            outputs = torch.tensor(features[rows]) @ weights[0] + weights[1]
            loss = torch.nn.functional.cross_entropy(outputs, torch.tensor(labels[rows]).long())
            gradients = torch.autograd.grad(loss, weights)
            with torch.no_grad():
                for weight, momentum, gradient in zip(weights, momenta, gradients, strict=True):
                    momentum.mul_(0.9).add_(gradient + SETTINGS.weight_decay * weight)
                    weight -= now * momentum
    return weights[0].detach(), weights[1].detach()


def test_every_head_is_the_one_that_torch_trains_alone():
    features, labels = data()
    heads = linear_grid.train(features, labels, COLUMNS, classes=CLASSES, settings=SETTINGS)
    start = linear_grid.train(features, labels, COLUMNS, classes=CLASSES, settings=GridSettings((1.0,), epochs=0, seed=2))
    for kind, (first, end) in COLUMNS.items():
        part = features[:, first:end]
        for number, rate in enumerate(SETTINGS.rates):
            kernel, bias = by_torch(part, labels, rate, np.asarray(start[kind].kernel[:, 0]))
            # 15 steps in float32; weights of the largest rate are some 10 in size.
            np.testing.assert_allclose(heads[kind].kernel[:, number], kernel.numpy(), rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(heads[kind].bias[number], bias.numpy(), rtol=1e-4, atol=1e-4)
            expected = (torch.tensor(part) @ kernel + bias).argmax(1).numpy()
            found = linear_grid.logits(heads, features, COLUMNS, Head(kind, number)).argmax(1)
            np.testing.assert_array_equal(found, expected)
            accuracy = linear_grid.accuracies(heads, features, labels, COLUMNS)[kind][number]
            assert accuracy == pytest.approx((expected == labels).mean())


def test_heads_that_are_trained_to_the_end_are_scikit_learn_s():
    """SGD decays kernel and bias; so does scikit-learn the weight of a constant feature, which stands for the bias."""
    features, labels = data()
    decay, images = 0.1, len(labels)
    settings = GridSettings((1.28, 0.64), epochs=400, batch_size=images, weight_decay=decay)
    heads = linear_grid.train(features, labels, {"all": (0, WIDTH)}, classes=CLASSES, settings=settings)
    with_constant = np.concatenate([features, np.ones((images, 1), np.float32)], axis=1).astype(np.float64)
    expected = LogisticRegression(C=1 / (decay * images), fit_intercept=False, tol=1e-10, max_iter=5000).fit(with_constant, labels)
    for number in range(2):
        np.testing.assert_allclose(heads["all"].kernel[:, number], expected.coef_[:, :-1].T, atol=1e-3)
        np.testing.assert_allclose(heads["all"].bias[number], expected.coef_[:, -1], atol=1e-3)
        predicted = linear_grid.logits(heads, features, {"all": (0, WIDTH)}, Head("all", number)).argmax(1)
        np.testing.assert_array_equal(predicted, expected.predict(with_constant))


def test_one_device_and_eight_train_the_same_heads(monkeypatch):
    features, labels = data()
    several = linear_grid.train(features, labels, COLUMNS, classes=CLASSES, settings=SETTINGS)
    assert jax.local_device_count() == 8
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    alone = linear_grid.train(features, labels, COLUMNS, classes=CLASSES, settings=SETTINGS)
    # Weights reach 10; sums over 32 images and 10 columns may be ordered differently.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), alone, several)


def test_a_rate_that_diverges_spoils_its_own_head_only():
    features, labels = data()
    columns = {"all": (0, WIDTH)}
    settings = GridSettings((1.0, 1e38), epochs=2, batch_size=32)
    heads = linear_grid.train(features * 10, labels, columns, classes=CLASSES, settings=settings)
    accuracy = linear_grid.accuracies(heads, features * 10, labels, columns)["all"]
    assert accuracy[0] > 0.5 and accuracy[1] == 0 and linear_grid.best_head({"all": accuracy}) == Head("all", 0)


def test_every_image_is_seen_once_an_epoch_and_small_data_is_one_batch():
    rows = np.concatenate(list(linear_grid.batches(100, 32, 0, 3)))
    assert len(rows) == 96 == len(set(rows.tolist()))
    assert not np.array_equal(rows, np.concatenate(list(linear_grid.batches(100, 32, 0, 4))))
    features, labels = data(5)
    heads = linear_grid.train(features, labels, {"all": (0, WIDTH)}, classes=CLASSES, settings=GridSettings((1.0,), epochs=1))
    assert np.abs(heads["all"].bias).max() > 0


def test_labels_that_are_no_classes_are_refused():
    features, labels = data(8)
    with pytest.raises(EvalError, match="labels: found"):
        linear_grid.train(features, labels - 1, {"all": (0, WIDTH)}, classes=CLASSES, settings=SETTINGS)
