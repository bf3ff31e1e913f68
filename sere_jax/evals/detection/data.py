"""The training and the test set of a detection: opened, checked against each other, and the truth of the test images."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from sere_jax.data.sources.annotation import Annotation
from sere_jax.data.sources.example import Source, SourceError
from sere_jax.data.sources.open import open_source
from sere_jax.data.sources.with_objects import WithObjects
from sere_jax.evals.detection.scores import Truth, truth_of
from sere_jax.evals.network import EvalError

_EXPECTED = "a prepared set with objects: python -m sere_jax prepare --source=coco:DIR (docs/data.md)"
_log = logging.getLogger(__name__)


def open_objects(key: str, spec: str) -> Source:
    """A source whose images have objects of named classes. `key` is the name of its setting. Raises EvalError for other sources."""
    if not spec:
        raise EvalError(f"{key}: found nothing, expected {_EXPECTED}")
    source = open_source(spec)
    if not source.object_classes:
        raise EvalError(f"{key}: {spec!r} has no objects with named classes, expected {_EXPECTED}")
    return source


def open_sets(train: str, test: str, *, masks: bool = True) -> tuple[WithObjects, Source]:
    """The images to train on, those without objects left out, and the test images, of the same classes.

    `masks` says whether the regions of objects are trained on. What is left out of training is logged. Raises EvalError for sources
    without objects or of different classes, and with `masks` where only some objects to train on have a region.
    """
    before, after = open_objects("train", train), open_objects("test", test)
    if before.object_classes != after.object_classes:
        names = [set(source.object_classes or ()) for source in (before, after)]
        differing = ", ".join(sorted(names[0] ^ names[1])[:3]) or "their order"
        raise EvalError(f"test: {test!r} has other classes than {train!r} ({differing}), expected the same")
    try:
        trained = WithObjects(before, masks=masks)
    except SourceError as error:
        raise EvalError(f"train: {error}") from error
    for note in trained.notes()[len(before.notes()) :]:  # `open_source` has logged the source's own
        _log.warning("%s: %s", ascii(train)[1:-1], note)
    return trained, after


def read_truth(source: Source) -> Truth:
    """The truth of all images of a source; every record is read once. Raises EvalError where one cannot be read or judged."""
    if not source.object_classes:
        raise EvalError(
            f"test: {source.spec!r} has no objects with classes; expected a prepared set with a feature 'objects' (docs/data.md)"
        )

    def annotations() -> Iterator[Annotation | None]:
        for position in range(len(source)):
            try:
                yield source[position].annotation
            except OSError as error:
                raise EvalError(f"test: {source.spec!r}: {error}") from error

    return truth_of(annotations(), source.object_classes or (), source.object_ids)
