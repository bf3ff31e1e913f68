"""Several sources as one, each with a weight: its share of every epoch."""

from __future__ import annotations

import bisect
import itertools
import math
import re
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int

from sere_jax.data.batches.order import Shares
from sere_jax.data.sources.example import Entry, Example, Source, SourceError
from sere_jax.data.sources.subset import Labelled

FORM = "mix:WEIGHT*SOURCE|WEIGHT*SOURCE..."


class Mixture(Source):
    """The examples of all parts, one part after the other: an index belongs to one image and to no other.

    `shares` tells the pipeline how often to draw from each part. Labels go by the classes' names: the classes are the sorted names of
    all parts together, so that `cat` is the same class wherever it comes from; where one part has no labels there are none. Annotations
    are passed on where all parts have the same classes of label maps and objects.
    """

    def __init__(self, spec: str, parts: Sequence[Source], weights: Sequence[float]) -> None:
        self.spec = spec
        self._parts = tuple(parts)
        sizes = tuple(len(part) for part in parts)
        self.shares = Shares(sizes, tuple(weights) or tuple(map(float, sizes)))
        self._ends = tuple(itertools.accumulate(sizes))
        labelled = all(part.classes for part in parts)
        self.classes = tuple(sorted({name for part in parts for name in part.classes})) if labelled else ()
        numbers = {name: number for number, name in enumerate(self.classes)}
        self._tables = tuple(np.array([numbers[name] for name in part.classes] if labelled else [], np.int32) for part in parts)

        tables = {(part.map_classes, part.object_classes) for part in parts}
        self._annotated = len(tables) == 1  # otherwise the same number means different classes
        if self._annotated:
            self.map_classes, self.object_classes = tables.pop()
            self.map_palette = self._parts[0].map_palette

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Example:
        part = bisect.bisect_right(self._ends, index)
        example = self._parts[part][index - (self._ends[part - 1] if part else 0)]
        annotation = example.annotation if self._annotated else None
        return example._replace(label=self._label(part, example.label), annotation=annotation)

    def read_ahead(self, indices: Sequence[int]) -> None:
        """Begin to fetch images that are asked for soon."""
        numbers = np.asarray(indices, np.int64)
        parts = np.searchsorted(self._ends, numbers, side="right")
        for number, part in enumerate(self._parts):
            part.read_ahead((numbers[parts == number] - (self._ends[number - 1] if number else 0)).tolist())

    def notes(self) -> tuple[str, ...]:
        """The notes of all parts, each after its part's text."""
        return tuple(f"{part.spec}: {note}" for part in self._parts for note in part.notes())

    def left_out(self) -> Iterator[str]:
        """The files of all parts."""
        return itertools.chain.from_iterable(part.left_out() for part in self._parts)

    def places(self) -> Iterator[tuple[str, int]]:
        """The places of all parts, one part after the other."""
        return itertools.chain.from_iterable(part.places() for part in self._parts)

    def listing(self) -> Iterator[Entry]:
        """The entries of all parts; a name begins with the number of its part."""
        for number, part in enumerate(self._parts):
            for entry in part.listing():
                yield entry._replace(name=f"{number}:{entry.name}", label=self._label(number, entry.label))

    def _label(self, part: int, label: int) -> int:
        return int(self._tables[part][label]) if self.classes and label >= 0 else -1

    def labels(self) -> Int[np.ndarray, " n"]:
        """The class of every example, -1 where there are none."""
        if not self.classes:
            return np.full(len(self), -1, np.int32)
        before = [part.labels() for part in self._parts if isinstance(part, Labelled)]
        if len(before) < len(self._parts):
            raise SourceError(f"{self.spec!r}: one of its parts cannot tell its labels without reading every image")
        return np.concatenate([np.where(labels < 0, -1, table[labels]) for labels, table in zip(before, self._tables, strict=True)])


def split_mixture(spec: str) -> tuple[list[str], list[float]]:
    """`mix:2*folder:/a|1*tfds:b:train` -> the parts' texts and weights. Without weights the list is empty, and the sizes decide.

    Raises SourceError for fewer than two parts, weights for some parts only, or one that is not a positive number.
    """
    texts = [part.strip() for part in spec.partition(":")[2].split("|")]
    matches = [re.fullmatch(r"(?:([^:*|]*)\*)?(.+)", text) for text in texts]
    if len(texts) < 2 or not all(matches):
        raise SourceError(f"{spec!r}: expected two or more sources, as in {FORM}")
    written = [match[1] for match in matches if match]
    if any(weight is None for weight in written):
        if any(weight is not None for weight in written):
            raise SourceError(f"{spec!r}: found weights for some sources, expected one for each or none, as in {FORM}")
        return texts, []
    weights = [_weight(spec, weight) for weight in written]
    return [match[2].strip() for match in matches if match], weights


def _weight(spec: str, text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not (math.isfinite(weight) and weight > 0):
        raise SourceError(f"{spec!r}: found the weight {text.strip()!r}, expected a number above 0, as in {FORM}")
    return weight
