"""What needs no learning: features that a network has to beat on the same images before it has shown anything."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from sere_jax.evals.features import collect
from sere_jax.evals.frozen.knn import Labelled

PIXELS_SIDE = 16
BINS = 8


def raw_pixels(image: UInt8[np.ndarray, "H W c"]) -> Float[np.ndarray, " d"]:
    """The image shrunk to 16 x 16 by area averaging, flattened, in [0, 1]."""
    small = cv2.resize(image, (PIXELS_SIDE, PIXELS_SIDE), interpolation=cv2.INTER_AREA)
    return small.reshape(-1).astype(np.float32) / 255


def colour_histogram(image: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, " d"]:
    """Joint histogram of red, green and blue with 8 bins each: shares of the 512 colours, where they are ignored."""
    bins = image.reshape(-1, 3).astype(np.int64) * BINS // 256
    cells = (bins[:, 0] * BINS + bins[:, 1]) * BINS + bins[:, 2]
    return np.bincount(cells, minlength=BINS**3).astype(np.float32) / len(cells)


BASELINES: dict[str, Callable[[np.ndarray], np.ndarray]] = {"raw pixels": raw_pixels, "colour histogram": colour_histogram}


def describe(function: Callable[[np.ndarray], np.ndarray], batches: Iterable[Any]) -> Labelled:
    """One of the `BASELINES` for every valid image of an iterator of `EvalBatch`, gathered from all processes."""
    rows = []
    for batch in batches:
        found = np.stack([function(image) for image in batch.images])
        rows.append({"features/baseline": found, "labels": batch.labels, "index": batch.index, "valid": batch.valid})
    whole = collect(rows, ("baseline",))
    return Labelled(whole.features["baseline"], whole.labels)
