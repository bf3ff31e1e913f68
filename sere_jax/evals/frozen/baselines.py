"""Features that need no training. A network should be better than these on the same images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from sere_jax.evals.features import Extracted, collect

PIXELS_SIDE = 16
BINS = 8


def raw_pixels(image: UInt8[np.ndarray, "H W c"]) -> Float[np.ndarray, " d"]:
    """The image shrunk to 16 x 16 by area averaging, flattened, in [0, 1]."""
    planes = [cv2.resize(plane, (PIXELS_SIDE, PIXELS_SIDE), interpolation=cv2.INTER_AREA) for plane in np.moveaxis(image, -1, 0)]
    return np.stack(planes, axis=-1).reshape(-1).astype(np.float32) / 255


def colour_histogram(image: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, " d"]:
    """Joint histogram of red, green and blue with 8 bins each: the share of pixels of each of the 512 colours."""
    bins = image.reshape(-1, 3).astype(np.int64) * BINS // 256
    cells = (bins[:, 0] * BINS + bins[:, 1]) * BINS + bins[:, 2]
    return np.bincount(cells, minlength=BINS**3).astype(np.float32) / len(cells)


BASELINES: dict[str, Callable[[np.ndarray], np.ndarray]] = {"raw pixels": raw_pixels, "colour histogram": colour_histogram}


def of_channels(channels: int) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """The baselines for images with this number of channels. The colour histogram needs three."""
    return BASELINES if channels == 3 else {"raw pixels": raw_pixels}


def describe(function: Callable[[np.ndarray], np.ndarray], batches: Iterable[Any]) -> Extracted:
    """One of the `BASELINES` for all images of an iterator of `EvalBatch`, gathered from all processes, under "baseline"."""
    rows = []
    for batch in batches:
        described = np.stack([function(image) for image in batch.images])
        rows.append({"features/baseline": described, "labels": batch.labels, "index": batch.index, "valid": batch.valid})
    return collect(rows, ("baseline",))
