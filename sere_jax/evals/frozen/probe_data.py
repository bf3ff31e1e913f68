"""What the probes of cached features share: their keys, the features of each network and baseline, and the images to choose on."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from sere_jax.config.cross import batch_of_processes, resize_before_crop
from sere_jax.config.keys import RULES as TRAINING
from sere_jax.config.rule import Rule
from sere_jax.data.images.reading import ImageReading
from sere_jax.data.sources.example import Source
from sere_jax.evals.frozen import cached
from sere_jax.evals.frozen.cached import Part
from sere_jax.evals.frozen.classification import image_set
from sere_jax.evals.frozen.comparison import SIDE
from sere_jax.evals.frozen.labelled import LabelledPair, open_labelled
from sere_jax.evals.network import Network, prepared, shared_reading, untrained
from sere_jax.evals.outcome import Images
from sere_jax.evals.pictures import names
from sere_jax.reporting import table
from sere_jax.writing import place

SELECT = ("split", "validation", "test")
SCALING = ("standard", "unit", "none")
RULES: Mapping[str, Rule] = {
    "train": Rule(str),
    "validation": Rule(str),
    "test": Rule(str),
    "select": Rule(str, choices=SELECT),
    "held_out": Rule(float, low=0.0, high=0.9, above=True),
    "blocks": Rule(int, low=1, length=0),
    "pooling": Rule(str, choices=cached.POOLING, length=0),
    "scaling": Rule(str, choices=SCALING),
    "size": SIDE,
    "resize": SIDE,
    "batch_size": Rule(int, low=1),
    "workers": Rule(int, low=0),
    "backend": TRAINING["data.backend"],
    "max_pixels": TRAINING["data.max_pixels"],
    "features": Rule(str),
    "save_predictions": Rule(bool),
    "seed": TRAINING["seed"],
}


class ProbeData(NamedTuple):
    """The keys that every probe of cached features has."""

    train: str
    validation: str
    test: str
    select: str
    held_out: float
    blocks: tuple[int, ...]
    pooling: tuple[str, ...]
    scaling: str
    size: int
    resize: int
    batch_size: int
    workers: int
    features: str
    seed: int


class Contestant(NamedTuple):
    """A network or a baseline, with its features of all parts."""

    name: str
    about: Mapping[str, Any]
    baseline: bool
    columns: Mapping[str, tuple[int, int]]  # kinds of features
    train: Part
    test: Part
    validation: Part | None


class Scaled(NamedTuple):
    """Features of one kind, scaled by the statistics of the training images."""

    train: Float[np.ndarray, "n d"]
    labels: Int[np.ndarray, " n"]
    fit: Bool[np.ndarray, " n"]  # training images that settings are tried on
    select: Float[np.ndarray, "m d"]  # the images that they are chosen by
    select_labels: Int[np.ndarray, " m"]
    test: Float[np.ndarray, "q d"]

    @property
    def all_fit(self) -> bool:
        """Whether no training image was held out."""
        return bool(self.fit.all())


class Sources(NamedTuple):
    """The opened sources; classes are those of the training images."""

    pair: LabelledPair  # train and test
    validation: LabelledPair | None  # train and validation


def among(values: Mapping[str, Any], wrong: Collection[str], processes: int) -> list[str]:
    """Mistakes of right values among each other."""
    lines = [] if {"size", "resize"} & set(wrong) else resize_before_crop("", values["size"], values["resize"])
    lines += [] if "batch_size" in wrong else batch_of_processes("batch_size", values["batch_size"], processes)
    return lines + validation_mistakes(values, wrong)


def validation_mistakes(values: Mapping[str, Any], wrong: Collection[str]) -> list[str]:
    """A source of validation images that nothing chooses by, or none where one is to choose."""
    if {"select", "validation"} & set(wrong) or (values["select"] == "validation") == bool(values["validation"]):
        return []
    expected = "a source, or select=split" if values["select"] == "validation" else "'', or select=validation"
    return [f"validation: found {values['validation']!r} beside select={values['select']}, expected {expected}"]


def open_sources(data: ProbeData) -> Sources:
    """Open all sources. Raises EvalError and SourceError as `open_labelled` does."""
    table.say(f"opening {', '.join(spec for spec in (data.train, data.validation, data.test) if spec)}")
    pair = open_labelled(data.train, data.test, ("train", "test"))
    return Sources(pair, open_labelled(data.train, data.validation, ("train", "validation")) if data.validation else None)


def contestants(networks: Sequence[Network], sources: Sources, data: ProbeData, reading: ImageReading) -> Iterator[Contestant]:
    """Raw pixels, the first network at random initialisation, then the networks; one at a time, so that memory holds one.

    Raises EvalError before any image is read where the sizes or the blocks do not suit a network.
    """
    reading = shared_reading(networks, reading)
    sides = {network.name: prepared(network, data.size, data.resize) for network in networks}
    for network in networks:
        cached.check_blocks(network, data.blocks)
    parts = {"train": (sources.pair.gallery, sources.pair.gallery_numbers), "test": (sources.pair.query, sources.pair.query_numbers)}
    if sources.validation:
        parts["validation"] = (sources.validation.query, sources.validation.query_numbers)
    sets = {
        name: image_set(name, source, batch_size=data.batch_size, reading=reading, workers=data.workers)
        for name, (source, _) in parts.items()
    }
    first = networks[0]
    pixels = {name: cached.raw_pixels(images, sides[first.name], parts[name][1]) for name, images in sets.items()}
    yield _contestant("raw pixels", {}, True, {"pixels": (0, pixels["train"].features.shape[1])}, pixels)
    for network in ([untrained(first, data.seed)] if first.init else []) + list(networks):
        described = {
            name: cached.extract(
                network,
                source,
                sets[name],
                blocks=max(data.blocks),
                sides=sides.get(network.name, sides[first.name]),
                reading=reading,
                directory=place(data.features) if data.features else None,
                numbers=numbers,
            )
            for name, (source, numbers) in parts.items()
        }
        width = described["train"].features.shape[1] // (max(data.blocks) + 1)
        columns = cached.columns(width, data.blocks, data.pooling)
        yield _contestant(network.name, network.about, network.name == "random init", columns, described)


def images_of(sources: Sources, data: ProbeData, one: Contestant) -> dict[str, Images]:
    """What a report says of the images, from the passes of one network."""
    opened: dict[str, tuple[str, Source, Part]] = {"train": (data.train, sources.pair.gallery, one.train)}
    if sources.validation and one.validation:
        opened["validation"] = (data.validation, sources.validation.query, one.validation)
    opened["test"] = (data.test, sources.pair.query, one.test)
    return {name: Images(spec, len(part.labels), names(source, part.unreadable.tolist())) for name, (spec, source, part) in opened.items()}


def scaled(one: Contestant, kind: str, data: ProbeData) -> Scaled:
    """The features of one kind, and the images to choose settings on, by `select`.

    `split` holds out a share of every class of the training images, `validation` and `test` are the images of these sources.
    """
    columns = slice(*one.columns[kind])
    train, labels = one.train.features[:, columns], one.train.labels
    if data.scaling == "standard":
        mean, deviation = train.mean(axis=0, dtype=np.float64), train.std(axis=0, dtype=np.float64)
        deviation = np.where(deviation > 1e-6 * max(float(np.abs(mean).max()), 1e-30), deviation, 1.0)  # a constant stays constant

    def scale(features: np.ndarray) -> np.ndarray:
        if data.scaling == "standard":
            return ((features - mean) / deviation).astype(np.float32)
        if data.scaling == "unit":
            return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
        return features

    train, test = scale(train), scale(one.test.features[:, columns])
    everything = np.ones(len(labels), np.bool_)
    if data.select == "split":
        out = cached.split(labels, data.held_out, data.seed)
        return Scaled(train, labels, ~out, train[out], labels[out], test)
    part = one.test if data.select == "test" or one.validation is None else one.validation
    return Scaled(train, labels, everything, scale(part.features[:, columns]), part.labels, test)


def notes(sources: Sources, data: ProbeData) -> Iterator[str]:
    """Facts about the images that a reader of the scores needs."""
    if data.select == "test":
        yield "settings were chosen on the test images (select=test): the scores are too good, and no estimate for new images"
    in_both = int(np.isin(sources.pair.images[1], sources.pair.images[0]).sum())
    if in_both:
        yield f"{in_both:,} of {len(sources.pair.query):,} test images are training images too: the scores are too good"


def _contestant(
    name: str, about: Mapping[str, Any], baseline: bool, columns: Mapping[str, tuple[int, int]], parts: Mapping[str, Part]
) -> Contestant:
    return Contestant(name, about, baseline, columns, parts["train"], parts["test"], parts.get("validation"))
