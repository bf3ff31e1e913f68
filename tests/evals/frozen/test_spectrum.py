"""RankMe and LiDAR on spectra made by hand, and what a training run is told beside its k-NN."""

from __future__ import annotations

import numpy as np
import pytest

from sere_jax.evals.frozen import in_training, spectrum
from sere_jax.evals.frozen.knn import Labelled


def with_spectrum(values: list[float], images: int = 40, seed: int = 0) -> np.ndarray:
    """Features [images, len(values)] with these singular values."""
    rng = np.random.default_rng(seed)
    left, _ = np.linalg.qr(rng.normal(size=(images, len(values))))
    right, _ = np.linalg.qr(rng.normal(size=(len(values), len(values))))
    return ((left * values) @ right.T).astype(np.float32)


@pytest.mark.parametrize("values", [[1.0] * 8, [5.0] + [1e-12] * 7, [4.0, 2.0, 1.0, 1.0, 0.5, 0.25, 0.1, 0.05]])
def test_rankme_is_the_entropy_of_the_singular_values(values):
    features = with_spectrum(values)
    singular = np.linalg.svd(features.astype(np.float64), compute_uv=False)
    shares = singular / singular.sum() + 1e-7
    # Values of 1e-12 of the largest come out as 1e-8 in float32: a few 1e-7 of the shares.
    assert spectrum.rankme(features) == pytest.approx(np.exp(-np.sum(shares * np.log(shares))), rel=1e-5)


def test_rankme_of_equal_values_is_their_number_and_of_equal_features_one():
    assert spectrum.rankme(with_spectrum([1.0] * 8)) == pytest.approx(8, rel=1e-5)
    assert spectrum.rankme(np.tile(np.arange(1, 9, dtype=np.float32), (20, 1))) == pytest.approx(1, abs=1e-4)
    assert spectrum.rankme(7 * with_spectrum([4.0, 1.0])) == pytest.approx(spectrum.rankme(with_spectrum([4.0, 1.0])), rel=1e-5)


def test_lidar_counts_the_directions_that_tell_classes_apart():
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(5), 400)
    centres = np.zeros((5, 12))
    centres[:4, :4] = 100 * np.eye(4)  # five points that span four directions alike, once their mean is removed
    corners = centres - centres.mean(0)
    features = (corners[labels] + rng.normal(size=(2000, 12))).astype(np.float32)
    found = spectrum.lidar(features, labels)
    # The eigenvalues of the between-class covariance of a corner and four axes: 1, 1, 1 and 1/5 of it.
    values = np.linalg.eigvalsh(np.cov(corners.T, bias=True))[-4:]
    shares = values / values.sum()
    assert found == pytest.approx(np.exp(-np.sum(shares * np.log(shares))), rel=0.03)  # within-class covariances of 400 draws
    assert spectrum.lidar(1000 * features, labels) == pytest.approx(found, rel=1e-4)
    one = (np.outer(labels, np.ones(12)) * 10 + rng.normal(size=(2000, 12))).astype(np.float32)
    assert spectrum.lidar(one, labels) < 1.3  # classes along one line


def test_the_probe_never_fits_an_image_that_it_is_tested_on():
    rng = np.random.default_rng(2)
    features, labels = rng.normal(size=(60, 40)).astype(np.float32), rng.integers(0, 3, 60).astype(np.int32)
    query = Labelled(features[:30], labels[:30], np.arange(30))
    both = dict(in_training.evaluate(Labelled(features, labels, np.arange(60)), query))
    apart = dict(in_training.evaluate(Labelled(features[30:], labels[30:]), query))
    assert both["probe/top1"] == apart["probe/top1"] < 0.7  # labels are random; with its own images in the fit it would be near 1
    alone = dict(in_training.evaluate(query, query))
    assert set(alone) == {"rank/rankme", "rank/lidar"}


def test_the_probe_of_separable_classes_is_right():
    labels = np.arange(60).astype(np.int32) % 6
    rng = np.random.default_rng(3)
    features = (5 * np.eye(6)[labels] + rng.normal(size=(60, 6))).astype(np.float32)
    found = dict(in_training.evaluate(Labelled(features[:42], labels[:42]), Labelled(features[42:], labels[42:]), classes=6))
    assert found["probe/top1"] > 0.9 and found["probe/top5"] == 1 and 1 < found["rank/lidar"] <= 5.01
