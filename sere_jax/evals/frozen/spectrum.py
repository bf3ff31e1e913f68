"""How many dimensions features use, judged without training anything: RankMe and LiDAR."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from sere_jax.evals.frozen.least_squares import moments

_EPSILON = 1e-7  # of both papers: keeps the logarithm finite
_DELTA = 1e-4  # LiDAR's: added to the within-class covariance, here in units of its mean eigenvalue


def effective_rank(spectrum: Float[np.ndarray, " d"]) -> float:
    """exp of the entropy of a spectrum that was scaled to sum to 1: the number of equal values that are as spread out.

    >>> round(effective_rank(np.array([2.0, 2.0, 2.0, 0.0])), 3), round(effective_rank(np.array([5.0, 0.0])), 3)
    (3.0, 1.0)
    """
    shares = spectrum / max(float(spectrum.sum()), np.finfo(np.float64).tiny) + _EPSILON
    return float(np.exp(-np.sum(shares * np.log(shares))))


def rankme(features: Float[np.ndarray, "n d"]) -> float:
    """The effective rank of the singular values of the features, between 1 and min(n, d).

    Source: Garrido et al., "RankMe" (2023), equation 2. The features are not centred. Singular values are the roots of the
    eigenvalues of the Gram matrix in float64, so that n may be large.
    """
    gram = moments(features, np.zeros(len(features), np.int32), 1).gram
    return effective_rank(np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0)))


def lidar(features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"]) -> float:
    """The effective rank of linear discriminants, between 1 and the number of classes - 1: the eigenvalues of
    Sw^(-1/2) Sb Sw^(-1/2), with the covariance Sb between the classes' means and Sw within the classes.

    Source: Thilak et al., "LiDAR" (2024), section 3. There a class is an image and its members are augmented views; here it is
    a class of labelled images, since their features are at hand. 0.0001 of its mean eigenvalue is added to the diagonal of Sw.
    """
    classes, numbers, counts = np.unique(labels, return_inverse=True, return_counts=True)
    sums = moments(features, numbers.astype(np.int32), len(classes))
    means = sums.cross / counts  # [d, c]
    centred = means - (sums.features / sums.images)[:, None]
    between = (centred * counts) @ centred.T / sums.images
    within = sums.gram / sums.images - (means * counts) @ means.T / sums.images
    ridge = _DELTA * max(float(np.trace(within)) / len(within), np.finfo(np.float64).tiny)
    values, vectors = np.linalg.eigh(within + ridge * np.eye(len(within)))
    root = (vectors / np.sqrt(np.maximum(values, ridge))).T
    return effective_rank(np.maximum(np.linalg.eigvalsh(root @ between @ root.T), 0))
