"""Weighted k-nearest-neighbour classification of frozen features, which scores a network without training.

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
from sere_jax.evals.features import Extracted, Extractor
from sere_jax.evals.network import EvalError
from sere_jax.types import Features, PyTree

_log = logging.getLogger(__name__)

KS = (10, 20, 100, 200)
TEMPERATURE = 0.07


class Labelled(NamedTuple):
    """Features of a set of images with their classes."""

    features: Float[np.ndarray, "n d"]
    labels: Int[np.ndarray, " n"]
    images: Int[np.ndarray, " n"] | None = None  # equal numbers in gallery and query are the same image; None: no image is in both


def labelled(extracted: Extracted, kind: str, images: Int[np.ndarray, " m"] | None = None) -> Labelled:
    """Extracted features of one kind of token; `images` has a number for each position of the source (see `Labelled.images`)."""
    return Labelled(extracted.features[kind], extracted.labels, None if images is None else images[extracted.positions])


def unit(features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Scale every row to length 1, in float32. A row of zeros stays zero; its cosine with every other row is 0."""
    features = np.asarray(features, np.float32)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def nearest(
    queries: Float[np.ndarray, "q d"], gallery: Float[np.ndarray, "g d"], k: int, *, query_chunk: int = 1024, gallery_chunk: int = 16384
) -> tuple[Float[np.ndarray, "q k"], Int[np.ndarray, "q k"]]:
    """The k gallery rows with the largest inner product with each query, best first: (similarities, row numbers).

    Both sets are processed in chunks, keeping the k best so far. The memory is query_chunk x gallery_chunk floats for
    any gallery: 64 MB for the 1.28 M rows of ImageNet, where a single product would take 250 GB.
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
    """The values of k clipped to a gallery of `gallery` images, and a note if any was clipped.

    >>> clip_ks((1, 10, 200), 18)
    ((1, 10, 18), ('k = 200: more than the gallery has, clipped to its 18 images',))

    Raises EvalError for an empty gallery and for numbers below 1.
    """
    if gallery < 1:
        raise EvalError("gallery: found no images besides the query itself; expected at least one")
    if not ks or min(ks) < 1:
        raise EvalError(f"neighbours: found {tuple(ks)}; expected positive numbers of neighbours")
    large = [k for k in ks if k > gallery]
    notes = (f"k = {', '.join(map(str, large))}: more than the gallery has, clipped to its {gallery} images",) if large else ()
    return tuple(sorted({min(k, gallery) for k in ks})), notes


def copies(gallery: Labelled, query: Labelled) -> Int[np.ndarray, " q"]:
    """Number of gallery rows that are the same image as each query."""
    if gallery.images is None or query.images is None:
        return np.zeros(len(query.labels), np.int64)
    highest = int(max(gallery.images.max(initial=0), query.images.max(initial=0)))
    return np.bincount(gallery.images, minlength=highest + 1)[query.images]


def voters(gallery: Labelled, query: Labelled) -> int:
    """Number of gallery images that can vote on every query. A query's own image does not vote."""
    return len(gallery.labels) - int(copies(gallery, query).max(initial=0))


def evaluate(
    gallery: Labelled, query: Labelled, *, neighbours: Sequence[int] = KS, temperature: float = TEMPERATURE, classes: int = 0
) -> Iterator[tuple[str, float]]:
    """Yield ('k10/top1', accuracy) for every k, and 'k10/top5' where there are more than five classes.

    The class of a query is argmax_c sum_{i in its k nearest} [label_i = c] exp(cos(query, gallery_i) / temperature). Rows of
    the gallery that hold the query's own image (equal numbers in `Labelled.images`) are left out: leave-one-out.

    Args:
      neighbours: the values of k; `clip_ks` clips them to the images that can vote.
      classes: number of classes; 0 takes the largest label + 1.

    Raises EvalError for unlabelled examples and for a gallery without other images than the query.

    >>> images = Labelled(np.eye(3)[[0, 0, 1, 1]], np.array([0, 0, 1, 1]))
    >>> dict(evaluate(images, images, neighbours=(1,)))
    {'k1/top1': 1.0}
    """
    _check_labels(gallery, "gallery")
    _check_labels(query, "query")
    clipped, _ = clip_ks(neighbours, voters(gallery, query))
    classes = classes or int(max(gallery.labels.max(), query.labels.max())) + 1
    similarity, rows = nearest_others(gallery, query, clipped[-1])
    near = gallery.labels[rows]
    for k in clipped:
        table = votes(similarity[:, :k], near[:, :k], classes, temperature)
        for name, value in scores.accuracies(table, query.labels):
            yield f"k{k}/{name}", value


def nearest_others(gallery: Labelled, query: Labelled, k: int) -> tuple[Float[np.ndarray, "q k"], Int[np.ndarray, "q k"]]:
    """The k nearest gallery rows of each query, best first, without rows that are the query's own image.

    Returns (cosines, rows). `k` is at most `voters`.
    """
    most = int(copies(gallery, query).max(initial=0))
    similarity, rows = nearest(unit(query.features), unit(gallery.features), k + most)
    if not most or gallery.images is None or query.images is None:
        return similarity, rows
    # At most `most` of the k + most rows are the query itself: moved to the end, they leave the k nearest others in front.
    order = np.argsort(gallery.images[rows] == query.images[:, None], axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarity, order, axis=1), np.take_along_axis(rows, order, axis=1)


def _check_labels(examples: Labelled, name: str) -> None:
    if not len(examples.labels):
        raise EvalError(f"{name}: found no images; expected at least one")
    if examples.labels.min() < 0:
        raise EvalError(
            f"{name}: found images without a label; expected a labelled source (bundled:{name}, folder:DIR with a sub-folder "
            "for each class, tfds:...), or --config=configs/eval/retrieval.py, which needs no labels"
        )


class KnnEvaluation:
    """The k-NN of a training run. Call it repeatedly with the parameters of the teacher.

    It compiles once. Decoded images are kept in memory if both sets fit in `cache_bytes`; later calls then cost only the
    forward passes. With several processes, each reads and keeps its own rows.

    Args:
      apply, mean, std: of the network, as `Extractor` takes them.
      gallery, query: functions that make an iterator of `EvalBatch`.
      neighbours, temperature, classes: as `evaluate` takes them.
      tokens: one of `features.TOKENS`.
      images: the numbers of the images at all positions of the gallery and of the query, as `Labelled.images`.
      prefix: of the names that are yielded.
      cache_bytes: host memory of this process for the decoded images.
      also: makes more scores from the features of gallery and query.
      initial: makes parameters at random initialisation. At the first call they are scored too, and every call then yields their
        scores as well, as NAME/random.
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
        images: tuple[Int[np.ndarray, " g"], Int[np.ndarray, " q"]] | None = None,
        prefix: str = "knn/",
        cache_bytes: int = 2 << 30,
        also: Callable[[Labelled, Labelled], Iterable[tuple[str, float]]] | None = None,
        initial: Callable[[], PyTree] | None = None,
    ) -> None:
        self._extract = Extractor(apply, mean=mean, std=std, tokens=(tokens,))
        self._sets = (_Cached(gallery, cache_bytes // 2), _Cached(query, cache_bytes // 2))
        self._tokens, self._prefix, self._neighbours, self._images = tokens, prefix, neighbours, images
        self._notes: tuple[str, ...] = ()
        self._also, self._initial = also, initial
        self._random: dict[str, float] = {}
        self._vote = functools.partial(evaluate, neighbours=neighbours, temperature=temperature, classes=classes)

    def __call__(self, params: PyTree) -> Iterator[tuple[str, float]]:
        """Yield ('knn/k10/top1', accuracy) and so on."""
        if self._initial is not None:
            self._random = {f"{name}/random": value for name, value in self._scores(self._initial())}
            self._initial = None
        yield from self._scores(params)
        yield from self._random.items()

    def _scores(self, params: PyTree) -> Iterator[tuple[str, float]]:
        sets = [self._extract(params, batches) for batches in self._sets]
        numbers = self._images or (None, None)
        gallery, query = (labelled(extracted, self._tokens, images) for extracted, images in zip(sets, numbers, strict=True))
        notes = clip_ks(self._neighbours, voters(gallery, query))[1]
        for name, extracted in zip(("gallery", "query"), sets, strict=True):
            if missing := len(extracted.unreadable):
                notes += (f"{missing:,} of {missing + len(extracted.labels):,} {name} images cannot be read and are left out",)
        for note in set(notes) - set(self._notes):
            _log.warning("k-NN during training: %s", note)
        self._notes = notes
        for name, value in self._vote(gallery, query):
            yield self._prefix + name, value
        if self._also is not None:
            yield from self._also(gallery, query)


class _Cached:
    """Iterates over the batches of `make()`. Keeps them after the first complete pass if they fit in `limit` bytes."""

    def __init__(self, make: Callable[[], Iterable[Any]], limit: int) -> None:
        self._make, self._limit = make, limit
        self._batches: list[Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        if self._batches is not None:
            yield from self._batches
            return
        batches: list[Any] = []
        size = 0
        for batch in self._make():
            size += np.asarray(batch.images).nbytes
            if size <= self._limit:
                batches.append(batch)
            else:
                batches.clear()
            yield batch
        if size <= self._limit:
            self._batches = batches
