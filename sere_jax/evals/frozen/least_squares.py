"""Linear classification in closed form: ridge regression of one-hot classes on features, for all regularisers at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from sere_jax.evals.network import EvalError

REGULARISERS = tuple(10.0**power for power in range(-6, 4))
_CHUNK = 8192  # rows that are converted to float64 at a time


class Linear(NamedTuple):
    """A linear classifier: logits = features @ kernel + bias."""

    kernel: Float[np.ndarray, "d c"]
    bias: Float[np.ndarray, " c"]

    def __call__(self, features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n c"]:
        """The logits."""
        return features @ self.kernel.astype(features.dtype) + self.bias.astype(features.dtype)


class Moments(NamedTuple):
    """Sums over labelled images, in float64. The moments of two sets of images together are the sums of both."""

    images: int
    features: Float[np.ndarray, " d"]
    classes: Float[np.ndarray, " c"]
    gram: Float[np.ndarray, "d d"]
    cross: Float[np.ndarray, "d c"]


def moments(features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], classes: int) -> Moments:
    """The sums of x, y, x x^T and x y^T over images with features x and one-hot classes y."""
    width = features.shape[1]
    gram, cross = np.zeros((width, width)), np.zeros((width, classes))
    for start in range(0, len(labels), _CHUNK):
        rows = features[start : start + _CHUNK].astype(np.float64)
        gram += rows.T @ rows
        cross += rows.T @ np.eye(classes)[labels[start : start + _CHUNK]]
    # The one-hot classes of an image sum to 1, so the classes' sums of features are the sum of features.
    return Moments(len(labels), cross.sum(axis=1), np.bincount(labels, minlength=classes).astype(np.float64), gram, cross)


def together(*parts: Moments) -> Moments:
    """The moments of several sets of images as one."""
    return Moments(*(sum(values[1:], values[0]) for values in zip(*parts, strict=True)))


class Ridge(NamedTuple):
    """The eigendecomposition of the centred Gram matrix, from which `solve` makes the classifier of any regulariser."""

    values: Float[np.ndarray, " d"]
    vectors: Float[np.ndarray, "d d"]
    rotated: Float[np.ndarray, "d c"]  # vectors^T X^T Y
    mean_features: Float[np.ndarray, " d"]
    mean_classes: Float[np.ndarray, " c"]

    def solve(self, regulariser: float) -> Linear:
        """The minimum over W of |Y - X W|^2 + regulariser x m |W|^2, with X and Y centred.

        m is the mean eigenvalue of X^T X, so a regulariser means the same for features of any scale and number. The bias is
        what centring leaves: mean(y) - mean(x) W.
        """
        scale = max(float(self.values.mean()), np.finfo(np.float64).tiny)
        kernel = self.vectors @ (self.rotated / (np.maximum(self.values, 0) + regulariser * scale)[:, None])
        return Linear(kernel, self.mean_classes - self.mean_features @ kernel)


def decompose(sums: Moments) -> Ridge:
    """One eigendecomposition, which serves every regulariser. Raises EvalError for no images or features that are not finite."""
    if not sums.images:
        raise EvalError("features: found no images; expected at least one")
    if not np.isfinite(sums.gram).all():
        raise EvalError("features: found numbers that are not finite; expected finite ones")
    mean_features, mean_classes = sums.features / sums.images, sums.classes / sums.images
    values, vectors = np.linalg.eigh(sums.gram - sums.images * np.outer(mean_features, mean_features))
    rotated = vectors.T @ (sums.cross - sums.images * np.outer(mean_features, mean_classes))
    return Ridge(values, vectors, rotated, mean_features, mean_classes)


class Chosen(NamedTuple):
    """The classifier whose regulariser was best on other images."""

    classifier: Linear
    regulariser: float
    accuracies: tuple[float, ...]  # on those images, in the order of the regularisers


def choose(
    fitted: Moments,
    held_out: tuple[Float[np.ndarray, "n d"], Int[np.ndarray, " n"]],
    regularisers: Sequence[float] = REGULARISERS,
    refit: Moments | None = None,
) -> Chosen:
    """Fit every regulariser, take the one with the highest accuracy on held-out images (of equals the largest), and refit.

    `refit` are the moments of the final fit; without them the classifier of `fitted` is taken.

    >>> features, labels = np.eye(4)[[0, 1] * 3], np.array([0, 1] * 3)
    >>> choose(moments(features, labels, 2), (features, labels), (0.01, 1.0)).accuracies
    (1.0, 1.0)
    """
    features, labels = held_out
    ridge = decompose(fitted)
    accuracies = tuple(float(np.mean(np.argmax(ridge.solve(value)(features), axis=1) == labels)) for value in regularisers)
    best = max(zip(accuracies, regularisers, strict=True))[1]
    return Chosen((decompose(refit) if refit else ridge).solve(best), best, accuracies)
