"""Scores of predictions: functions from arrays to floats."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int


def top_accuracy(scores: Float[np.ndarray, "q c"], labels: Int[np.ndarray, " q"], top: int) -> float:
    """Share of examples whose label is among the `top` classes with the highest scores.

    Equal scores are ranked by class number, lower first, so the result does not depend on the sorting algorithm. A class
    with a score of 0 never counts as a hit.
    """
    of_label = np.take_along_axis(scores, labels[:, None], axis=1)
    classes = np.arange(scores.shape[1])
    better = (scores > of_label) | ((scores == of_label) & (classes[None] < labels[:, None]))
    return float(np.mean((better.sum(1) < top) & (of_label[:, 0] > 0)))


def accuracies(scores: Float[np.ndarray, "q c"], labels: Int[np.ndarray, " q"]) -> Iterator[tuple[str, float]]:
    """Yield ('top1', share), and ('top5', share) where there are more than five classes."""
    yield "top1", top_accuracy(scores, labels, 1)
    if scores.shape[1] > 5:
        yield "top5", top_accuracy(scores, labels, 5)
