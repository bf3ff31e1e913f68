"""Scores of predictions: functions from arrays to floats."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Int


def hits(scores: Float[np.ndarray, "q c"], labels: Int[np.ndarray, " q"], top: int) -> Bool[np.ndarray, " q"]:
    """Whether the label of each example is among the `top` classes with the highest scores.

    Equal scores are ranked by class number, lower first, so the result does not depend on the sorting algorithm.
    """
    of_label = np.take_along_axis(scores, labels[:, None], axis=1)
    classes = np.arange(scores.shape[1])
    better = (scores > of_label) | ((scores == of_label) & (classes[None] < labels[:, None]))
    return better.sum(1) < top


def top_accuracy(votes: Float[np.ndarray, "q c"], labels: Int[np.ndarray, " q"], top: int) -> float:
    """Share of examples whose label is among the `top` classes with the most votes. A class without votes never counts as a hit."""
    of_label = np.take_along_axis(votes, labels[:, None], axis=1)
    return float(np.mean(hits(votes, labels, top) & (of_label[:, 0] > 0)))


def accuracies(votes: Float[np.ndarray, "q c"], labels: Int[np.ndarray, " q"]) -> Iterator[tuple[str, float]]:
    """Yield ('top1', share), and ('top5', share) where there are more than five classes."""
    yield "top1", top_accuracy(votes, labels, 1)
    if votes.shape[1] > 5:
        yield "top5", top_accuracy(votes, labels, 5)
