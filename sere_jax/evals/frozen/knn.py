"""Weighted k-nearest-neighbour classification of frozen features: how good is the network before anything is fitted?

Source: Wu et al., "Unsupervised feature learning via non-parametric instance discrimination" (2018), section 3.4, with
the settings of the DINO evaluation (temperature 0.07; k = 10, 20, 100, 200).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from sere_jax.evals import scores
from sere_jax.evals.features import Extractor
from sere_jax.evals.network import EvalError
from sere_jax.types import Features, PyTree

_log = logging.getLogger(__name__)

KS = (10, 20, 100, 200)
TEMPERATURE = 0.07


class Labelled(NamedTuple):
    """Features of a set of images with their classes."""

    features: Float[np.ndarray, "n d"]
    labels: Int[np.ndarray, " n"]


def unit(features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Scale every row to length 1, in float32; a row of zeros stays zero (and is equally far from everything)."""
    features = np.asarray(features, np.float32)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def nearest(
    queries: Float[np.ndarray, "q d"], gallery: Float[np.ndarray, "g d"], k: int, *, query_chunk: int = 1024, gallery_chunk: int = 16384
) -> tuple[Float[np.ndarray, "q k"], Int[np.ndarray, "q k"]]:
    """The k gallery rows with the largest inner product with each query, best first: (similarities, row numbers).

    Works through both sets in chunks, keeping the k best so far, so that memory is query_chunk x gallery_chunk floats
    whatever the size of the gallery (ImageNet's 1.28 M rows need 64 MB here, not 250 GB).
    """
    rows = [jnp.asarray(queries[start : start + query_chunk]) for start in range(0, len(queries), query_chunk)]
    best = [(jnp.full((len(r), k), -jnp.inf), jnp.zeros((len(r), k), jnp.int32)) for r in rows]
    for offset in range(0, len(gallery), gallery_chunk):  # outermost: a large gallery goes to the device once
        part = jnp.asarray(gallery[offset : offset + gallery_chunk])
        best = [_merge(b, r, part, jnp.int32(offset)) for b, r in zip(best, rows, strict=True)]
    similarity, indices = zip(*jax.device_get(best), strict=True)
    return np.concatenate(similarity), np.concatenate(indices)


@jax.jit
def _merge(best: tuple[jax.Array, jax.Array], queries: jax.Array, gallery: jax.Array, offset: jax.Array) -> tuple[jax.Array, jax.Array]:
    # Highest precision: at a temperature of 0.07 an error of 1e-2 in a bfloat16-ish product changes weights by 15 %.
    similarity = jnp.einsum("qd,gd->qg", queries, gallery, precision="highest")
    indices = offset + jnp.arange(gallery.shape[0], dtype=jnp.int32)[None]
    similarity = jnp.concatenate([best[0], similarity], axis=1)
    indices = jnp.concatenate([best[1], jnp.broadcast_to(indices, (queries.shape[0], gallery.shape[0]))], axis=1)
    similarity, position = jax.lax.top_k(similarity, best[0].shape[1])
    return similarity, jnp.take_along_axis(indices, position, axis=1)


def votes(
    similarity: Float[np.ndarray, "q k"], labels: Int[np.ndarray, "q k"], classes: int, temperature: float = TEMPERATURE
) -> Float[np.ndarray, "q c"]:
    """Sum of exp(similarity / temperature) over the neighbours of each class."""
    weights = np.exp(similarity.astype(np.float64) / temperature)
    cells = np.arange(len(labels))[:, None] * classes + labels
    return np.bincount(cells.ravel(), weights.ravel(), minlength=len(labels) * classes).reshape(-1, classes)


def clip_ks(ks: Sequence[int], gallery: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The neighbour counts that a gallery of this size allows, and a note for those that had to be clipped."""
    if gallery < 1:
        raise EvalError("gallery: found no images; expected at least one")
    if not ks or min(ks) < 1:
        raise EvalError(f"neighbours: found {tuple(ks)}; expected positive numbers of neighbours")
    large = [k for k in ks if k > gallery]
    notes = (f"k = {', '.join(map(str, large))}: more than the gallery holds, clipped to its {gallery} images",) if large else ()
    return tuple(sorted({min(k, gallery) for k in ks})), notes


def evaluate(
    gallery: Labelled, query: Labelled, *, neighbours: Sequence[int] = KS, temperature: float = TEMPERATURE, classes: int = 0
) -> Iterator[tuple[str, float]]:
    """Yield ('k10/top1', accuracy) and so on for every k; 'k10/top5' too where there are more than five classes.

    A query's class is argmax_c sum_{i in its k nearest} [label_i = c] exp(cos(query, gallery_i) / temperature).
    A k above the size of the gallery is clipped to it (`clip_ks` has a note on it). `classes` = 0 takes the largest label + 1.
    Raises EvalError for unlabelled examples.
    """
    _check_labels(gallery, "gallery")
    _check_labels(query, "query")
    clipped, _ = clip_ks(neighbours, len(gallery.labels))
    classes = classes or int(max(gallery.labels.max(), query.labels.max())) + 1
    similarity, rows = nearest(unit(query.features), unit(gallery.features), clipped[-1])
    near = gallery.labels[rows]
    for k in clipped:
        table = votes(similarity[:, :k], near[:, :k], classes, temperature)
        for name, value in scores.accuracies(table, query.labels):
            yield f"k{k}/{name}", value


def _check_labels(examples: Labelled, name: str) -> None:
    if not len(examples.labels):
        raise EvalError(f"{name}: found no images; expected at least one")
    if examples.labels.min() < 0:
        raise EvalError(
            f"{name}: found images without a label; expected a labelled source (bundled:{name}, folder:DIR with a sub-folder "
            "per class, tfds:...), or --config=configs/eval/retrieval.py, which needs no labels"
        )


class KnnEvaluation:
    """The k-NN of a training run: call it with the teacher's parameters, again and again.

    Compiles once. Decoded images are kept while both sets fit in `cache_bytes` of host memory (a process holds only its
    own rows), so that later calls cost the forward passes alone. `gallery` and `query` make iterators of `EvalBatch`;
    on several processes each makes its own rows.
    """

    def __init__(
        self,
        apply: Callable[[PyTree, jax.Array], Features],
        gallery: Callable[[], Iterable[Any]],
        query: Callable[[], Iterable[Any]],
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        neighbours: Sequence[int] = KS,
        temperature: float = TEMPERATURE,
        tokens: str = "cls",
        classes: int = 0,
        prefix: str = "knn/",
        cache_bytes: int = 2 << 30,
    ) -> None:
        self._extract = Extractor(apply, mean=mean, std=std, tokens=(tokens,))
        self._sets = (_Cached(gallery, cache_bytes // 2), _Cached(query, cache_bytes // 2))
        self._tokens, self._prefix = tokens, prefix
        self._neighbours, self._told = neighbours, False
        self._vote = functools.partial(evaluate, neighbours=neighbours, temperature=temperature, classes=classes)

    def __call__(self, params: PyTree) -> Iterator[tuple[str, float]]:
        """Yield ('knn/k10/top1', accuracy) and so on."""
        found = [self._extract(params, batches) for batches in self._sets]
        gallery, query = (Labelled(one.features[self._tokens], one.labels) for one in found)
        if not self._told:
            for note in clip_ks(self._neighbours, len(gallery.labels))[1]:
                _log.warning("k-NN during training: %s", note)
            self._told = True
        for name, value in self._vote(gallery, query):
            yield self._prefix + name, value


class _Cached:
    """Iterate over what `make()` yields; remember it from the first complete pass on if it is small enough."""

    def __init__(self, make: Callable[[], Iterable[Any]], limit: int) -> None:
        self._make, self._limit = make, limit
        self._kept: list[Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[Any] | None = []
        size = 0
        for batch in self._make():
            size += np.asarray(batch.images).nbytes
            if kept is not None:
                kept = [*kept, batch] if size <= self._limit else None
            yield batch
        self._kept = kept
