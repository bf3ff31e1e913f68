"""The k-NN protocol: a labelled gallery, a labelled query set, any number of networks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from sere_jax.data.batches.whole_images import EvalBatch, eval_batches
from sere_jax.data.images.reading import DEFAULT_READING, ImageReading, ValueRange
from sere_jax.data.sources.example import Source
from sere_jax.data.sources.open import open_source
from sere_jax.evals.frozen import comparison, knn
from sere_jax.evals.frozen.comparison import ImageSet
from sere_jax.evals.network import EvalError, Network
from sere_jax.types import Features, PyTree


def image_set(
    name: str,
    source: Source,
    *,
    batch_size: int,
    reading: ImageReading,
    workers: int,
) -> ImageSet:
    """This process's rows of a source: the shorter side resized, then the centre square."""

    def batches(size: int, resize: int) -> Iterator[EvalBatch]:
        return eval_batches(
            source,
            size=size,
            resize=resize,
            batch_size=batch_size,
            reading=reading,
            workers=workers,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    return ImageSet(name, batches, -(-len(source) // batch_size))


def open_labelled(gallery: str, query: str) -> tuple[Source, Source]:
    """Both sources of a k-NN. Raises EvalError where one has no labels or their classes differ."""
    found = []
    for key, spec in (("gallery", gallery), ("query", query)):
        if not spec:
            raise EvalError(f"{key}: found nothing, expected bundled:{key}, folder:DIR or tfds:NAME:SPLIT")
        source = open_source(spec)
        if not source.classes:
            raise EvalError(
                f"{key}: {spec!r} has no labels; expected a source with classes, or --config=configs/eval/retrieval.py, which needs none"
            )
        found.append(source)
    if found[0].classes != found[1].classes:
        only = sorted(set(found[1].classes) ^ set(found[0].classes))[:5]
        raise EvalError(
            f"gallery and query: found other classes in {gallery!r} than in {query!r} (such as {', '.join(only)}); expected the same"
        )
    return found[0], found[1]


def _inputs(networks: Sequence[Network]) -> tuple[int, ValueRange]:
    """Channels and range of values of the images that all networks take. Raises EvalError where these differ: a table shares images."""
    found = {(len(network.mean), tuple(network.value_range)): network.name for network in networks}
    if len(found) > 1:
        told = ", ".join(f"{name}: {channels} channels, value_range {values}" for (channels, values), name in found.items())
        raise EvalError(f"networks: found different inputs ({told}), expected the same for all of a table")
    channels, (low, high) = next(iter(found))
    return channels, (low, high)


class Settings(NamedTuple):
    """Which images, how they are prepared, and how k-NN counts."""

    gallery: str
    query: str
    tokens: tuple[str, ...]
    neighbours: tuple[int, ...]
    temperature: float
    size: int  # pixels of the centre crop; 0: each network's own
    resize: int  # pixels of the shorter side before it; 0: the same
    batch_size: int
    workers: int
    reading: ImageReading  # its channels and range are the networks'
    baselines: bool
    seed: int


def run(networks: Sequence[Network], workdir: Path, settings: Settings) -> None:
    """Print the table and write workdir/eval/knn.json."""
    names = (settings.gallery, settings.query)
    sources = open_labelled(*names)
    channels, value_range = _inputs(networks)
    reading = dataclasses.replace(settings.reading, channels=channels, value_range=value_range)
    sets = [
        image_set(
            name,
            s,
            batch_size=settings.batch_size,
            reading=reading,
            workers=settings.workers,
        )
        for name, s in zip(("gallery", "query"), sources, strict=True)
    ]
    classes, images = len(sources[0].classes), [len(source) for source in sources]
    counting = comparison.Settings(settings.size, settings.resize, settings.neighbours, settings.temperature, classes)
    rows = comparison.compare(
        networks, *sets, tokens=settings.tokens, with_baselines=settings.baselines, seed=settings.seed, settings=counting
    )
    details = {
        "protocol": "knn",
        "gallery": names[0],
        "query": names[1],
        "gallery_images": images[0],
        "query_images": images[1],
        "classes": classes,
        "temperature": settings.temperature,
        "size": settings.size,
        "seed": settings.seed,
    }
    title = f"k-NN: {images[1]} images of {names[1]} by {images[0]} of {names[0]}, {classes} classes"
    path = workdir / "eval" / "knn.json"
    comparison.publish(rows, title=title, path=path, details=details, gallery_images=images[0], neighbours=settings.neighbours)


def periodic(
    apply: Callable[[PyTree, jax.Array], Features],
    *,
    gallery: str,
    query: str,
    size: int,
    resize: int,
    batch_size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    neighbours: tuple[int, ...] = knn.KS,
    temperature: float = knn.TEMPERATURE,
    tokens: str = "cls",
    reading: ImageReading = DEFAULT_READING,
    workers: int = 0,
) -> knn.KnnEvaluation:
    """The k-NN of a training run, from source texts; call the answer with the teacher's backbone parameters.

    Raises EvalError or SourceError before training starts rather than at the first
    evaluation.
    """
    sources = open_labelled(gallery, query)
    sets = [
        image_set(
            name,
            s,
            batch_size=batch_size,
            reading=reading,
            workers=workers,
        )
        for name, s in zip(("gallery", "query"), sources, strict=True)
    ]
    return knn.KnnEvaluation(
        apply,
        lambda: sets[0].batches(size, resize),
        lambda: sets[1].batches(size, resize),
        mean=mean,
        std=std,
        neighbours=neighbours,
        temperature=temperature,
        tokens=tokens,
        classes=len(sources[0].classes),
    )
