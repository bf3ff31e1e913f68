"""The first rows of the first batch of a training run, with exactly its images, crops, masks and colours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, UInt8

from sere_jax.data.batches.maker import BatchMaker, UnreadableData
from sere_jax.data.batches.pipeline import ViewsRow
from sere_jax.data.crops.masks import MaskRecipe
from sere_jax.data.crops.views import ViewRecipe
from sere_jax.data.images.reading import DEFAULT_READING, ImageReading
from sere_jax.data.sources.example import Source
from sere_jax.evals.network import EvalError
from sere_jax.ops.geometry import Sampling
from sere_jax.ops.keys import example_keys, split_uses
from sere_jax.types import Views


class Feed(NamedTuple):
    """The settings of a run's batches, and of the points of the overlaps at which its relations are compared."""

    source: Source
    recipe: ViewRecipe
    augment: Callable[[Views, jax.Array], tuple[jax.Array, jax.Array]]  # the train step's: uint8 views, keys -> normalised views
    mean: tuple[float, ...]  # of its normalisation, which the figure undoes
    std: tuple[float, ...]
    seed: int
    batch_size: int = 0  # of all processes; 0: as many as are shown
    reading: ImageReading = DEFAULT_READING
    masking: MaskRecipe | None = None
    points: int = 13  # on a side of the overlap of two global crops
    local_points: int = 6  # on a side of the overlap of a global and a local crop
    sampling: Sampling = "endpoints"
    run: str = ""  # the checkpoint whose training it is; "": the evaluation's own config


class FirstBatch(NamedTuple):
    """Rows of a batch and their source images."""

    sources: list[UInt8[np.ndarray, "_ _ 3"]]
    names: list[str]  # of files
    views: Views  # as they leave the host
    coloured: tuple[Float[np.ndarray, "b v H W 3"], Float[np.ndarray, "b l S T 3"]]  # as the networks see them, but in [0, 1]


def first_batch(feed: Feed, count: int) -> FirstBatch:
    """The first `count` rows of step 0, or the whole batch if it is smaller. Raises EvalError if no image can be read."""
    batch_size = min(feed.batch_size or count, len(feed.source))
    rows = min(count, batch_size)
    maker = BatchMaker(
        source=feed.source,
        row=ViewsRow(feed.recipe, feed.reading, feed.masking),
        seed=feed.seed,
        batch_size=batch_size,
        first_row=0,
        rows=rows,
    )
    try:
        views = maker(0)
        sources = [maker.read(position)[0].copy() for position in range(rows)]
    except UnreadableData as error:
        raise EvalError(str(error)) from error
    colour_keys, _ = split_uses(example_keys(feed.seed, 0, rows))
    mean, std = np.asarray(feed.mean), np.asarray(feed.std)
    first, second = (np.clip(np.asarray(x) * std + mean, 0, 1) for x in jax.jit(feed.augment)(views, colour_keys))
    names = [Path(feed.source[int(i)].name).name for i in views.index]
    return FirstBatch(sources, names, views, (first, second))
