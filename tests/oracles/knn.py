"""Weighted k-nearest neighbours, one query at a time, in plain Python and float64."""

from __future__ import annotations

import math

import numpy as np


def scores(gallery: np.ndarray, gallery_labels: np.ndarray, query: np.ndarray, k: int, temperature: float, classes: int) -> list[float]:
    """Class scores of one query: sum over its k nearest of exp(cosine / temperature)."""
    similarities = []
    for row in gallery:
        lengths = math.sqrt(sum(float(x) ** 2 for x in row)) * math.sqrt(sum(float(x) ** 2 for x in query))
        similarities.append(sum(float(a) * float(b) for a, b in zip(row, query, strict=True)) / lengths)
    nearest = sorted(range(len(gallery)), key=lambda i: -similarities[i])[:k]
    totals = [0.0] * classes
    for i in nearest:
        totals[int(gallery_labels[i])] += math.exp(similarities[i] / temperature)
    return totals


def accuracy(
    gallery: np.ndarray,
    gallery_labels: np.ndarray,
    queries: np.ndarray,
    labels: np.ndarray,
    k: int,
    top: int,
    own: list[set[int]] | None = None,
) -> float:
    """Share of queries whose label is among the `top` best of `scores` at temperature 0.07.

    `own[q]` are the rows of the gallery that query q must not see.
    """
    classes = int(max(gallery_labels.max(), labels.max())) + 1
    hits = 0
    for number, (query, label) in enumerate(zip(queries, labels, strict=True)):
        others = [row for row in range(len(gallery)) if own is None or row not in own[number]]
        totals = scores(gallery[others], gallery_labels[others], query, k, 0.07, classes)
        ranked = sorted(range(classes), key=lambda c: -totals[c])
        hits += int(label) in [c for c in ranked[:top] if totals[c] > 0]
    return hits / len(queries)
