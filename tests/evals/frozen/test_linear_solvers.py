"""Logistic regression and least squares against scikit-learn and NumPy, and on any number of devices."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from sere_jax.evals.frozen import least_squares, logistic
from sere_jax.evals.network import EvalError

CLASSES, WIDTH = 5, 12


def data(images: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, images).astype(np.int32)
    centres = 0.7 * np.random.default_rng(1).normal(size=(CLASSES, WIDTH))
    return (centres[labels] + rng.normal(size=(images, WIDTH))).astype(np.float32), labels


@pytest.fixture(scope="module")
def path():
    """The fits of three values of C, on all devices."""
    features, labels = data()
    return dict(logistic.Solver(features, labels, classes=CLASSES).path((10.0, 0.01, 1.0)))


@pytest.mark.parametrize("c", [0.01, 1.0, 10.0])
def test_logistic_regression_is_scikit_learn_s(path, c):
    features, labels = data()
    expected = LogisticRegression(C=c, tol=1e-9, max_iter=5000).fit(features.astype(np.float64), labels)
    found = path[c].classifier
    assert path[c].gradient <= 1e-6 and path[c].steps < 200
    np.testing.assert_allclose(found.kernel.T, expected.coef_, atol=1e-3)
    # A constant added to all biases changes no probability.
    np.testing.assert_allclose(found.bias - found.bias.mean(), expected.intercept_ - expected.intercept_.mean(), atol=1e-3)
    test, test_labels = data(500, seed=7)
    assert np.mean(found(test).argmax(1) == test_labels) == expected.score(test, test_labels)


def test_a_torch_loop_ends_at_the_same_classifier(path):
    """Gradients by PyTorch in float64, steps with momentum until nothing moves."""
    (features, labels), c = data(), 1.0
    inputs, targets = torch.tensor(features).double(), torch.tensor(labels).long()
    weights = [torch.zeros(shape, dtype=torch.float64, requires_grad=True) for shape in ((WIDTH, CLASSES), (CLASSES,))]
    momenta = [torch.zeros_like(weight) for weight in weights]
    for _ in range(1500):
        sums = c * torch.nn.functional.cross_entropy(inputs @ weights[0] + weights[1], targets, reduction="sum")
        gradients = torch.autograd.grad(sums + (weights[0] ** 2).sum() / 2, weights)
        with torch.no_grad():
            for weight, momentum, gradient in zip(weights, momenta, gradients, strict=True):
                momentum.mul_(0.95).add_(gradient)
                weight -= 1e-3 * momentum
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e-6
    kernel, bias = (weight.detach().numpy() for weight in weights)
    np.testing.assert_allclose(path[c].classifier.kernel, kernel, atol=1e-3)
    test, test_labels = data(500, seed=7)
    same = path[c].classifier(test).argmax(1) == (test @ kernel + bias).argmax(1)
    assert same.all() and len(set(test_labels)) == CLASSES


def test_one_device_and_eight_find_the_same_classifier(path, monkeypatch):
    features, labels = data(300)
    assert jax.local_device_count() == 8  # 300 rows leave 4 rows of padding
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    alone = dict(logistic.Solver(features, labels, classes=CLASSES).path((10.0, 0.01, 1.0)))
    test = data(500, seed=7)[0]
    for c, fit in path.items():
        # The objective leaves coefficients some 1e-4 of room: only sums that are added in the same order end at the same place.
        assert alone[c].steps == fit.steps
        np.testing.assert_allclose(alone[c].classifier.kernel, fit.classifier.kernel, rtol=0, atol=1e-6)
        np.testing.assert_allclose(alone[c].classifier(test), fit.classifier(test), rtol=0, atol=1e-5)  # sums of twelve such terms


def test_the_number_of_steps_is_bounded():
    assert logistic.Solver(*data(), classes=CLASSES, max_steps=2).fit(1.0).steps == 2


def test_images_that_are_not_used_do_not_count():
    features, labels = data()
    use = np.arange(300) % 3 > 0
    expected = LogisticRegression(C=0.3, tol=1e-9, max_iter=5000).fit(features[use].astype(np.float64), labels[use])
    found = logistic.Solver(features, labels, classes=CLASSES).fit(0.3, use).classifier
    np.testing.assert_allclose(found.kernel.T, expected.coef_, atol=1e-3)


@pytest.mark.parametrize("regulariser", [1e-6, 1e-2, 10.0])
def test_least_squares_is_the_solution_of_the_normal_equations(regulariser):
    features, labels = data()
    centred = features.astype(np.float64) - features.mean(0, dtype=np.float64)
    targets = np.eye(CLASSES)[labels]
    gram = centred.T @ centred
    expected = np.linalg.solve(gram + regulariser * np.trace(gram) / WIDTH * np.eye(WIDTH), centred.T @ (targets - targets.mean(0)))
    found = least_squares.decompose(least_squares.moments(features, labels, CLASSES)).solve(regulariser)
    np.testing.assert_allclose(found.kernel, expected, rtol=1e-9, atol=1e-12)  # float64 throughout
    ridge = Ridge(alpha=regulariser * np.trace(gram) / WIDTH).fit(features.astype(np.float64), targets)
    np.testing.assert_allclose(found(features.astype(np.float64)), ridge.predict(features.astype(np.float64)), rtol=1e-9, atol=1e-9)


def test_fewer_images_than_dimensions_and_a_constant_dimension():
    features, labels = data(8)
    features[:, 3] = 2.0
    linear = least_squares.decompose(least_squares.moments(features, labels, CLASSES)).solve(1e-3)
    assert np.isfinite(linear.kernel).all() and np.all(linear.kernel[3] == pytest.approx(0, abs=1e-9))
    assert (linear(features).argmax(1) == labels).all()


def test_moments_of_two_parts_are_those_of_the_whole():
    features, labels = data(40)
    whole = least_squares.moments(features, labels, CLASSES)
    parts = least_squares.together(*(least_squares.moments(features[rows], labels[rows], CLASSES) for rows in (slice(9), slice(9, 40))))
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


def test_the_regulariser_is_chosen_on_other_images_and_the_fit_uses_all():
    train, held_out = data(60), data(200, seed=3)
    sums = least_squares.moments(*train, CLASSES)
    everything = least_squares.together(sums, least_squares.moments(*held_out, CLASSES))
    chosen = least_squares.choose(sums, held_out, (1e-6, 1e-1, 1e6), refit=everything)
    accuracy = {
        value: np.mean(least_squares.decompose(sums).solve(value)(held_out[0]).argmax(1) == held_out[1]) for value in (1e-6, 1e-1, 1e6)
    }
    assert chosen.accuracies == tuple(accuracy.values()) and accuracy[chosen.regulariser] == max(accuracy.values())
    np.testing.assert_array_equal(chosen.classifier.kernel, least_squares.decompose(everything).solve(chosen.regulariser).kernel)


def test_features_that_are_not_finite_and_wrong_labels_are_refused():
    features, labels = data(10)
    broken = np.where(np.arange(WIDTH) == 2, np.nan, features).astype(np.float32)
    with pytest.raises(EvalError, match="not finite"):
        logistic.Solver(broken, labels, classes=CLASSES)
    with pytest.raises(EvalError, match="not finite"):
        least_squares.decompose(least_squares.moments(broken, labels, CLASSES))
    with pytest.raises(EvalError, match="labels: found"):
        logistic.Solver(features, labels, classes=2)
    with pytest.raises(EvalError, match="no images"):
        logistic.Solver(features[:0], labels[:0], classes=2)
