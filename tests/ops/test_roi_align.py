"""RoIAlign against a loop over bins, samples and corners."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from sere_jax.ops.roi_align import level_of, roi_align, roi_align_pyramid


def _bilinear(features: np.ndarray, y: float, x: float) -> np.ndarray:
    height, width, _ = features.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return np.zeros(features.shape[2])
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - top, x - left
    upper = (1 - dx) * features[top, left] + dx * features[top, right]
    lower = (1 - dx) * features[bottom, left] + dx * features[bottom, right]
    return (1 - dy) * upper + dy * lower


def _by_loops(features: np.ndarray, box: np.ndarray, size: int, stride: float) -> np.ndarray:
    left, top, right, bottom = box / stride - 0.5
    bin_width, bin_height = (right - left) / size, (bottom - top) / size
    down, across = math.ceil(bin_height), math.ceil(bin_width)
    out = np.zeros((size, size, features.shape[2]))
    for i in range(size):
        for j in range(size):
            samples = [
                _bilinear(features, top + bin_height * (i + (k + 0.5) / down), left + bin_width * (j + (m + 0.5) / across))
                for k in range(down)
                for m in range(across)
            ]
            out[i, j] = np.mean(samples, axis=0) if samples else 0
    return out


BOXES = np.array(
    [
        [8, 8, 40, 40],
        [3.3, 5.1, 21.7, 60.2],  # tall: more samples down than across
        [-30, -20, 25, 30],  # begins outside of the image
        [50, 50, 200, 90],  # ends far outside
        [10, 10, 10, 10],  # empty
        [17.2, 9.9, 17.9, 10.4],  # smaller than a cell
    ],
    np.float32,
)


def test_bins_are_means_of_bilinear_samples() -> None:
    features = np.random.default_rng(0).normal(size=(9, 11, 3)).astype(np.float32)
    aligned = roi_align(jnp.asarray(features), jnp.asarray(BOXES), 3, 8.0)
    expected = np.stack([_by_loops(features.astype(np.float64), box.astype(np.float64), 3, 8.0) for box in BOXES])
    np.testing.assert_allclose(aligned, expected, atol=1e-5)  # float32 positions of up to 25 cells


def test_a_linear_image_is_read_at_the_centres_of_the_bins() -> None:
    rows, columns = np.mgrid[:16, :16].astype(np.float32)
    features = jnp.asarray(np.stack([columns, rows], axis=-1))
    aligned = roi_align(features, jnp.array([[16.0, 24.0, 48.0, 56.0]]), 4, 4.0)[0]
    # A box from cell 3.5 to 11.5 in four bins, two cells wide each.
    np.testing.assert_allclose(aligned[0, :, 0], [4.5, 6.5, 8.5, 10.5], rtol=1e-5)
    np.testing.assert_allclose(aligned[:, 0, 1], [6.5, 8.5, 10.5, 12.5], rtol=1e-5)


def test_levels_by_size() -> None:
    sides = jnp.array([1.0, 111.0, 112.0, 223.0, 224.0, 448.0, 5000.0])
    boxes = jnp.stack([jnp.zeros(7), jnp.zeros(7), sides, sides], axis=1)
    assert level_of(boxes, 4).tolist() == [0, 0, 1, 1, 2, 3, 3]


def test_each_box_is_read_on_its_own_level() -> None:
    levels = [jnp.full((16 >> i, 16 >> i, 2), float(i)) for i in range(3)]
    boxes = jnp.array([[10.0, 10.0, 40.0, 40.0], [0.0, 0.0, 120.0, 120.0], [5.0, 5.0, 250.0, 250.0]])
    aligned = roi_align_pyramid(levels, [16.0, 32.0, 64.0], boxes, 2)
    np.testing.assert_allclose(aligned[:, 0, 0, 0], [0.0, 1.0, 2.0], atol=1e-6)


def test_gradients_reach_the_features_and_not_the_boxes() -> None:
    features = jnp.ones((4, 4, 1))
    by_features, by_boxes = jax.grad(lambda f, b: jnp.sum(roi_align(f, b, 2, 1.0)), argnums=(0, 1))(
        features, jnp.array([[1.0, 1.0, 3.0, 3.0]])
    )
    # Every bin is a mean of weights that sum to 1.
    np.testing.assert_allclose(jnp.sum(by_features), 4.0, rtol=1e-5)
    assert not by_boxes.any()
