"""Patch k-NN while a run trains: the mIoU of frozen patches at the evaluations' cadence, beside that of random initialisation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from sere_jax import distributed
from sere_jax.evals.features import to_host
from sere_jax.evals.frozen import patch_data
from sere_jax.evals.frozen.patch_data import PatchSettings
from sere_jax.evals.frozen.patch_probe import Probe, nearest
from sere_jax.evals.network import Network, shared_reading
from sere_jax.evals.pictures import LeftOut
from sere_jax.evals.protocol import Evaluation
from sere_jax.types import PyTree

_SCORES = ("miou", "macc", "pixel_accuracy")


def periodic(network: Network, settings: Any) -> Evaluation:
    """Parameters -> ('patch_knn/k10/miou', value), also `macc` and `pixel_accuracy`, for each k and cosine similarity.

    Nothing is chosen. The first call scores `network.init` too, and every call yields these values as NAME/random. Process 0 reads the
    images and does the work; every process must call it, and gets the scores.

    Raises EvalError or SourceError before training starts, not at the first evaluation.

    Args:
      settings: `patches.KnnSettings`; of `distances` the first is taken.
    """
    data = PatchSettings(*(getattr(settings, name) for name in PatchSettings._fields))
    data = data._replace(reading=shared_reading([network], data.reading))
    with distributed.together():
        sources = patch_data.open_sources(data)
    encoder_of = patch_data.encoders(network, data.size, data.batch_size)[0]
    grid = [(k, settings.distances[0]) for k in settings.neighbours]
    names = [f"patch_knn/k{k}/{score}" for k, _ in grid for score in _SCORES]
    random: dict[str, float] = {}

    def scores(params: PyTree) -> dict[str, float]:
        params, values = to_host(params), np.zeros(len(names))
        if jax.process_index() == 0:
            left_out = {"train": LeftOut(), "test": LeftOut()}
            tallies = Probe(sources, data, encoder_of(params), left_out, grid, nearest).of_all()
            of_each = [tallies[setting].scores(data.absent) for setting in grid]
            values = np.array([one[score] for one in of_each for score in _SCORES])
        if jax.process_count() > 1:
            values = np.asarray(multihost_utils.broadcast_one_to_all(values))
        return dict(zip(names, values.tolist(), strict=True))

    def evaluate(params: PyTree) -> Iterator[tuple[str, float]]:
        if not random and network.init is not None:
            random.update({f"{name}/random": value for name, value in scores(network.init(data.seed)).items()})
        yield from scores(params).items()
        yield from random.items()

    return evaluate
