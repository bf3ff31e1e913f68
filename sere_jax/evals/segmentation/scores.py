"""Scores of a segmentation: intersection over union, accuracies, and the F of objects against background.

Pixels of all images are counted in one confusion matrix. A truth of -1 is ignored.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from sere_jax.evals.network import EvalError

Absent = Literal["skip", "zero"]
ABSENT: tuple[Absent, ...] = ("skip", "zero")


class Binary(NamedTuple):
    """Scores of "any object" (class > 0) against background (class 0), without regard to the class."""

    object_iou: float
    background_iou: float
    f: float  # of all pixels together

    @property
    def mean_iou(self) -> float:
        """Mean of the two intersections over union."""
        return (self.object_iou + self.background_iou) / 2


def confusion(truth: Int[np.ndarray, "*shape"], predicted: Int[np.ndarray, "*shape"], classes: int) -> Int[np.ndarray, "c c"]:
    """Number of pixels of each class (row) by predicted class (column).

    >>> confusion(np.array([[0, 1], [1, -1]]), np.array([[0, 1], [0, 1]]), 2).tolist()
    [[1, 0], [1, 1]]
    """
    counted = truth >= 0
    cells = truth[counted].astype(np.int64) * classes + predicted[counted]
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def class_iou(counts: Int[np.ndarray, "c c"]) -> Float[np.ndarray, " c"]:
    """Intersection over union of each class; NaN for a class that is neither in the truth nor predicted."""
    union = counts.sum(axis=0) + counts.sum(axis=1) - counts.diagonal()
    return np.where(union > 0, counts.diagonal() / np.maximum(union, 1), np.nan)


def class_recall(counts: Int[np.ndarray, "c c"]) -> Float[np.ndarray, " c"]:
    """Share of each class's pixels that are recognised; NaN for a class that is not in the truth."""
    pixels = counts.sum(axis=1)
    return np.where(pixels > 0, counts.diagonal() / np.maximum(pixels, 1), np.nan)


def score(counts: Int[np.ndarray, "c c"], absent: Absent = "skip") -> dict[str, float]:
    """`miou`, `macc` (mean recall of the classes) and `pixel_accuracy`, shares in [0, 1], from one confusion matrix.

    `absent` says what becomes of a class that no image holds: `skip` leaves it out of the means (MMSegmentation), `zero` counts it
    as 0 (ImageNet-S). Raises EvalError where no pixel is counted.

    >>> score(np.array([[2, 0, 0], [1, 1, 0], [0, 0, 0]]))
    {'miou': 0.5833333333333333, 'macc': 0.75, 'pixel_accuracy': 0.75}
    """
    pixels = int(counts.sum())
    if not pixels:
        raise EvalError("label maps: found no pixel that counts; expected at least one that is not ignored")
    union, recall = class_iou(counts), class_recall(counts)
    if absent == "zero":
        union, recall = np.nan_to_num(union), np.nan_to_num(recall)
    return {
        "miou": float(np.nanmean(union)),
        "macc": float(np.nanmean(recall)),
        "pixel_accuracy": float(counts.trace() / pixels),
    }


def f_measure(counts: Int[np.ndarray, "c c"]) -> float:
    """F = 1.3 P R / (0.3 P + R) of objects (classes above 0) against background, 0 where no object pixel is right.

    The mean over images is ImageNet-S's F. Source: ImageNet-S (Gao et al. 2022), beta^2 = 0.3. An image without a pixel that counts,
    and one that has no object, have F = 0 and are counted in that mean, as in ImageNet-S's own evaluation, whose published numbers
    would be others without them.

    >>> round(f_measure(np.array([[5, 1], [1, 3]])), 6)
    0.75
    """
    right, predicted, true = int(counts[1:, 1:].sum()), int(counts[:, 1:].sum()), int(counts[1:].sum())
    if not right:
        return 0.0
    precision, recall = right / predicted, right / true
    return 1.3 * precision * recall / (0.3 * precision + recall)


def binary(counts: Int[np.ndarray, "c c"]) -> Binary:
    """Category-agnostic scores of all pixels together (TPAMI Table 9): every class above 0 is one object.

    >>> binary(np.array([[4, 0, 1], [0, 1, 2], [1, 0, 1]])).object_iou  # the confusion of two objects does not count
    0.6666666666666666
    """
    merged = np.array([[counts[0, 0], counts[0, 1:].sum()], [counts[1:, 0].sum(), counts[1:, 1:].sum()]])
    background, objects = np.nan_to_num(class_iou(merged))
    return Binary(float(objects), float(background), f_measure(merged))
