"""k nearest patches, exactly: the votes of a gallery of labelled patches for every patch of a query.

Source: CAPI (Darcet et al. 2025), whose segmentation without training tries several k and two distances.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from sere_jax.evals.frozen import knn

Distance = Literal["cosine", "l2"]
DISTANCES: tuple[Distance, ...] = ("cosine", "l2")


class Gallery:
    """Labelled patches to compare with. Only a chunk of it is on the device at a time.

    >>> gallery = Gallery(np.eye(3, dtype=np.float32)[[0, 0, 1]], np.array([0, 0, 1]), 2)
    >>> gallery.votes(np.eye(3, dtype=np.float32)[:2], "cosine", (1, 2))[1].tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """

    def __init__(self, features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], classes: int) -> None:
        self._features, self._labels, self._classes = features, labels, classes
        self._mean = features.mean(axis=0, dtype=np.float64).astype(np.float32)
        self._prepared: dict[Distance, np.ndarray] = {}

    def votes(
        self, queries: Float[np.ndarray, "q d"], distance: Distance, neighbours: Sequence[int]
    ) -> Mapping[int, Float[np.ndarray, "q c"]]:
        """For each k, the share of each class among the k nearest patches; a k above the size of the gallery takes all of it."""
        most = min(max(neighbours), len(self._labels))
        _, rows = knn.nearest(self._queries(queries, distance), self._gallery(distance), most)
        near = self._labels[rows]
        return {k: shares(near[:, :k], self._classes) for k in neighbours}

    def _gallery(self, distance: Distance) -> np.ndarray:
        if distance not in self._prepared:
            self._prepared[distance] = knn.unit(self._features) if distance == "cosine" else self._lifted()
        return self._prepared[distance]

    def _lifted(self) -> np.ndarray:
        """|q - g|^2 is smallest where (q, 1) (g, -|g|^2 / 2) is largest. Without their common mean the numbers cancel less."""
        centred = self._features - self._mean
        return np.concatenate([centred, -np.square(centred).sum(axis=1, keepdims=True) / 2], axis=1)

    def _queries(self, queries: np.ndarray, distance: Distance) -> np.ndarray:
        if distance == "cosine":
            return knn.unit(queries)
        return np.concatenate([queries - self._mean, np.ones((len(queries), 1), np.float32)], axis=1)


def shares(labels: Int[np.ndarray, "q k"], classes: int) -> Float[np.ndarray, "q c"]:
    """The share of each class in every row.

    >>> shares(np.array([[0, 2, 2, 0]]), 3).tolist()
    [[0.5, 0.0, 0.5]]
    """
    cells = np.arange(len(labels))[:, None] * classes + labels
    counts = np.bincount(cells.ravel(), minlength=len(labels) * classes).reshape(-1, classes)
    return (counts / labels.shape[1]).astype(np.float32)
