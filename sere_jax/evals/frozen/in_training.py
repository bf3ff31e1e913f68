"""Scores that cost a second once the k-NN of a training run has gathered its features: a closed-form probe, RankMe, LiDAR."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sere_jax.evals import scores
from sere_jax.evals.frozen import cached, least_squares, spectrum
from sere_jax.evals.frozen.knn import Labelled

_HELD_OUT = 0.1
_SEED = 0


def evaluate(gallery: Labelled, query: Labelled, classes: int = 0) -> Iterator[tuple[str, float]]:
    """Yield ('probe/top1', accuracy), also top5 for more than five classes, ('rank/rankme', ...) and ('rank/lidar', ...).

    The probe is `least_squares` on standardised features of the gallery, its regulariser chosen on a tenth of it, and tested on the
    queries. Images that are queries too are left out of the gallery; without any others there is no probe. The ranks are
    those of the gallery.
    """
    classes = classes or int(max(gallery.labels.max(), query.labels.max())) + 1
    others = np.ones(len(gallery.labels), np.bool_)
    if gallery.images is not None and query.images is not None:
        others = ~np.isin(gallery.images, query.images)
    if others.any():
        yield from _probe(gallery.features[others], gallery.labels[others], query, classes)
    yield "rank/rankme", spectrum.rankme(gallery.features)
    yield "rank/lidar", spectrum.lidar(gallery.features, gallery.labels)


def _probe(train: np.ndarray, labels: np.ndarray, query: Labelled, classes: int) -> Iterator[tuple[str, float]]:
    mean, deviation = train.mean(axis=0), np.maximum(train.std(axis=0), 1e-6)
    train, test = (train - mean) / deviation, (query.features - mean) / deviation
    out = cached.held_out(labels, _HELD_OUT, _SEED)
    fitted, rest = (least_squares.moments(train[rows], labels[rows], classes) for rows in (~out, out))
    everything = least_squares.together(fitted, rest)
    if out.any():
        classifier = least_squares.choose(fitted, (train[out], labels[out]), refit=everything).classifier
    else:
        classifier = least_squares.decompose(everything).solve(1.0)
    logits = classifier(test)
    yield "probe/top1", float(np.mean(scores.hits(logits, query.labels, 1)))
    if classes > 5:
        yield "probe/top5", float(np.mean(scores.hits(logits, query.labels, 5)))
