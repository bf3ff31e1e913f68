"""The k-NN protocol: a labelled gallery, a labelled query set, any number of networks."""

from __future__ import annotations

import functools
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from sere_jax.buckets import Location
from sere_jax.config.cross import batch_of_processes, resize_before_crop
from sere_jax.config.keys import RULES
from sere_jax.config.rule import Rule
from sere_jax.data.batches.whole_images import EvalBatch, eval_batches
from sere_jax.data.images.reading import ImageReading
from sere_jax.data.sources.example import Source
from sere_jax.evals.frozen import comparison, in_training, knn
from sere_jax.evals.frozen.comparison import ImageSet
from sere_jax.evals.frozen.labelled import LabelledPair, open_labelled
from sere_jax.evals.network import Network, prepared, shared_reading
from sere_jax.evals.pictures import left_out_note, names
from sere_jax.evals.protocol import Protocol
from sere_jax.reporting import table

_log = logging.getLogger(__name__)


def image_set(
    name: str, source: Source, *, batch_size: int, reading: ImageReading, workers: int, numbers: Int[np.ndarray, " c"] | None = None
) -> ImageSet:
    """This process's rows of a source: the shorter side resized, then the centre square.

    `numbers[label]` are the labels of the batches; by default those of the source. An image without a class counts as unreadable.
    """
    reported: set[int] = set()

    def batches(size: int, resize: int) -> Iterator[EvalBatch]:
        loaded = eval_batches(
            source,
            size=size,
            resize=resize,
            batch_size=batch_size,
            reading=reading,
            workers=workers,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        for batch in loaded:
            with_class = batch.labels >= 0
            for position in set(batch.index[batch.valid & ~with_class].tolist()) - reported:
                reported.add(position)
                _log.warning("%s: %s has no class and is left out", source.spec, names(source, [position])[0])
            labels = batch.labels if numbers is None else np.where(with_class, numbers[batch.labels], -1)
            yield batch._replace(labels=labels, valid=batch.valid & with_class)

    return ImageSet(name, batches, len(source), batch_size)


class Settings(NamedTuple):
    """The images, their preparation, and the settings of the k-NN."""

    gallery: str
    query: str
    tokens: tuple[str, ...]
    neighbours: tuple[int, ...]
    temperature: float
    size: int  # pixels of the centre crop; 0: each network's own
    resize: int  # pixels of the shorter side before it; 0: each network's own, or size x 256 / 224
    batch_size: int
    workers: int
    reading: ImageReading  # its channels and range are the networks'
    baselines: bool
    seed: int


def run(networks: Sequence[Network], workdir: Location, settings: Settings) -> None:
    """Print the table and write workdir/eval/knn.json."""
    reading = shared_reading(networks, settings.reading)
    table.say(f"k-NN: opening {settings.gallery} and {settings.query}")
    pair = open_labelled(settings.gallery, settings.query)
    counting = comparison.Settings(
        settings.size, settings.resize, settings.neighbours, settings.temperature, len(pair.classes), pair.images
    )
    rows = comparison.compare(
        networks,
        *_sets(pair, settings.batch_size, reading, settings.workers),
        tokens=settings.tokens,
        with_baselines=settings.baselines,
        seed=settings.seed,
        settings=counting,
    )
    read = rows[0].read
    unreadable = {"gallery": names(pair.gallery, read.gallery_unreadable), "query": names(pair.query, read.query_unreadable)}
    details = {
        "protocol": "knn",
        "gallery": settings.gallery,
        "query": settings.query,
        "gallery_images": read.gallery,
        "query_images": read.query,
        "unreadable": unreadable,
        "in_both": read.in_both,
        "classes": len(pair.classes),
        "temperature": settings.temperature,
        "size": settings.size,
        "seed": settings.seed,
    }
    comparison.publish(
        rows,
        title=f"k-NN: {read.query:,} images of {settings.query} by {read.gallery:,} of {settings.gallery}, {len(pair.classes):,} classes",
        path=workdir / "eval" / "knn.json",
        details=details,
        neighbours=settings.neighbours,
        notes=list(_notes(read, unreadable)),
    )


_RULES: Mapping[str, Rule] = {
    **comparison.RULES,
    "gallery": Rule(str),
    "query": Rule(str),
    "resize": comparison.SIDE,
    "workers": Rule(int, low=0),
    "backend": RULES["data.backend"],
}


def _among(values: Mapping[str, Any], wrong: Collection[str], processes: int) -> list[str]:
    """A crop that is larger than its image; a batch that cannot be shared by the processes."""
    lines = [] if {"size", "resize"} & set(wrong) else resize_before_crop("", values["size"], values["resize"])
    return lines + ([] if "batch_size" in wrong else batch_of_processes("batch_size", values["batch_size"], processes))


def _sets(pair: LabelledPair, batch_size: int, reading: ImageReading, workers: int) -> tuple[ImageSet, ImageSet]:
    shared: dict[str, Any] = {"batch_size": batch_size, "reading": reading, "workers": workers}
    return (
        image_set("gallery", pair.gallery, numbers=pair.gallery_numbers, **shared),
        image_set("query", pair.query, numbers=pair.query_numbers, **shared),
    )


def _notes(read: comparison.Read, unreadable: dict[str, list[str]]) -> Iterator[str]:
    """Facts about the images that a reader of the scores needs."""
    for name, count in (("gallery", read.gallery), ("query", read.query)):
        if note := left_out_note(f"{name} images", unreadable[name], count + len(unreadable[name])):
            yield note
    if read.in_both:
        yield f"{read.in_both:,} of {read.query:,} query images are in the gallery too: none votes on itself (leave-one-out)"
    if read.without_class:
        yield f"{read.without_class:,} query images belong to a class of which the gallery has no other image: they count as wrong"


def _periodic(network: Network, settings: Settings) -> knn.KnnEvaluation:
    """The k-NN of a training run, whose network comes without parameters; it scores the first of `settings.tokens`.

    From the same features it makes the scores of `in_training`: a closed-form probe, RankMe and LiDAR. With `network.init` every
    score stands beside that of random parameters (NAME/random).

    Raises EvalError or SourceError before training starts, not at the first evaluation.
    """
    pair = open_labelled(settings.gallery, settings.query)
    sets = _sets(pair, settings.batch_size, shared_reading([network], settings.reading), settings.workers)
    size, resize = prepared(network, settings.size, settings.resize)
    return knn.KnnEvaluation(
        network.apply,
        lambda: sets[0].batches(size, resize),
        lambda: sets[1].batches(size, resize),
        mean=network.mean,
        std=network.std,
        neighbours=settings.neighbours,
        temperature=settings.temperature,
        tokens=settings.tokens[0],
        classes=len(pair.classes),
        images=pair.images,
        also=functools.partial(in_training.evaluate, classes=len(pair.classes)),
        initial=functools.partial(network.init, settings.seed) if network.init else None,
    )


PROTOCOL = Protocol("knn", _RULES, Settings, run, columns=comparison.columns, among=_among, periodic=_periodic)
