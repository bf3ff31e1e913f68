"""The protocol `linear`: linear classifiers on a frozen network, trained on augmented images, or on features computed once.

A grid of rates x kinds of features is trained at once. A batch goes through the network once, without a gradient; all heads learn
from the same features. The best head is chosen by `select`. With `cached=True` the images are not augmented and go through the
network once in all (`frozen.probes`, `frozen.linear_grid`).

Source: the linear evaluation of DINO (Caron et al. 2021); the grid is iBOT's and DINOv2's.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sere_jax.buckets import Location
from sere_jax.config.cross import batch_of_processes
from sere_jax.config.keys import RULES as TRAINING
from sere_jax.config.rule import SHARE, Rule, interval, number
from sere_jax.data.annotations.transforms import RandomCrop
from sere_jax.data.images.reading import ImageReading
from sere_jax.evals import outcome
from sere_jax.evals.frozen import cached, linear_grid, probe_data, probes
from sere_jax.evals.frozen.classification import image_set
from sere_jax.evals.frozen.linear_grid import GridSettings, Head
from sere_jax.evals.frozen.probe_data import ProbeData
from sere_jax.evals.network import Network, digest, prepared, shared_reading, untrained
from sere_jax.evals.pictures import names
from sere_jax.evals.protocol import Protocol
from sere_jax.evals.trained import heads, images, run
from sere_jax.evals.trained.images import Parts
from sere_jax.reporting import table
from sere_jax.types import PyTree
from sere_jax.writing import place

# What a training does not depend on: it is resumed with other values of these. Of the images their digests count, not their paths.
_RUNNING = (
    *("cached", "features", "workers", "log_every_steps", "eval_batch_size", "random_init", "save_predictions", "reading"),
    *("train", "validation", "test", "max_bad_fraction"),
)


class Settings(NamedTuple):
    """The keys of `configs/eval/linear.py`, which explains them."""

    train: str
    validation: str
    test: str
    select: str
    held_out: float
    blocks: tuple[int, ...]
    pooling: tuple[str, ...]
    rates: tuple[float, ...]
    epochs: int
    batch_size: int
    momentum: float
    weight_decay: float
    cached: bool
    crop_scale: tuple[float, float]
    flip_prob: float
    size: int
    resize: int
    features: str
    eval_every_epochs: int
    eval_batch_size: int
    log_every_steps: int
    workers: int
    reading: ImageReading
    max_bad_fraction: float
    random_init: bool
    save_predictions: bool
    seed: int


class _Kinds(NamedTuple):
    """Kinds of features under the names of their heads in a state, which are parts of paths."""

    columns: dict[str, tuple[int, int]]  # kind_0 -> first column, end
    titles: dict[str, str]  # kind_0 -> cls of 1 block


def linear(networks: Sequence[Network], workdir: Location, settings: Settings) -> None:
    """Train and test the heads of every network, print the table and write what `outcome.publish` writes.

    Raises EvalError for settings that do not fit the networks, the images or the devices; and what `run.train` raises.
    """
    if settings.cached:
        probes.run(
            "linear", "linear, cached features", networks, workdir, settings, _probe_data(settings), probes.grid_fit(_grid(settings))
        )
        return
    run.check_batch(settings.batch_size, accumulate_steps=1)
    settings = settings._replace(reading=shared_reading(networks, settings.reading))
    for network in networks:
        cached.check_blocks(network, settings.blocks)
        prepared(network, settings.size, settings.resize)
    parts = images.open_parts(
        settings.train, settings.validation, settings.test, select=settings.select, share=settings.held_out, seed=settings.seed
    )
    images.check_enough(parts, settings.batch_size)
    random = [untrained(networks[0], settings.seed)] if settings.random_init else []
    rows: list[outcome.Row] = []
    counts: dict[str, outcome.Images] = {}
    for network in [*random, *networks]:
        table.say(f"linear: {network.name}, {len(parts.train.source):,} training images")
        row, counts = _row(network, workdir, settings, parts)
        rows.append(row)
    trained = [place(row.about["training"]) for row in rows]
    counts = {"train": images.training_images(settings.train, parts.train.source, trained, settings.reading), **counts}
    report = outcome.Outcome(
        "linear",
        f"linear: {counts['test'].read:,} images of {settings.test}, {len(parts.classes):,} classes",
        settings._asdict(),
        counts,
        parts.classes,
        rows,
        list(images.notes(parts, settings.select)),
    )
    outcome.publish(report, workdir, save_predictions=settings.save_predictions)


def _row(network: Network, workdir: Location, settings: Settings, parts: Parts) -> tuple[outcome.Row, dict[str, outcome.Images]]:
    """Train the heads of one network; its row, and what was read of the test and the validation images."""
    choose, test = _whole(network, settings, parts)
    kinds = _kinds(test.features.shape[1], settings)
    training = _training(network, settings, parts, kinds, choose)
    name = outcome.slugs([network.name])[0]
    trained = run.train(training, run.place(workdir, "linear", name, training.description))
    best, accuracy = _best(trained.best.params, kinds, choose)
    last, _ = _best(trained.last.params, kinds, choose)

    def predictions(weights: run.Weights, head: Head) -> outcome.Predictions:
        logits = linear_grid.logits(heads.heads_of(weights.params), test.features, kinds.columns, head)
        return outcome.Predictions(logits, test.labels, test.positions)

    last_predictions = predictions(trained.last, last)
    last_scores = outcome.score(last_predictions.logits, last_predictions.labels)
    per_epoch = len(parts.train.source) // settings.batch_size
    row = outcome.row(
        network.name,
        predictions(trained.best, best),
        extra={f"last_{key}": value for key, value in last_scores.items() if key != "per_class"},
        head={
            "epoch": trained.best.step // per_epoch,
            "rate": settings.rates[best.rate],
            "features": kinds.titles[best.kind],
        },
        about={**network.about, "training": str(trained.directory), "best_step": trained.best.step},
        baseline=network.name == "random init",
        details={"selection_accuracy": {kinds.titles[kind]: _by_rate(settings.rates, values) for kind, values in accuracy.items()}},
    )
    counts = {"test": _images(parts.test, test)}
    if settings.select != "test":
        counts["validation"] = _images(parts.choose, choose)
    return row, counts


def _images(part: images.Part, features_: cached.Part) -> outcome.Images:
    return outcome.Images(part.spec, len(features_.labels), names(part.source, features_.unreadable.tolist()))


def _whole(network: Network, settings: Settings, parts: Parts) -> tuple[cached.Part, cached.Part]:
    """Features of the whole images that choose, and of the test images. The network is frozen, so they serve every epoch."""

    def extract(name: str, part: images.Part) -> cached.Part:
        batches = image_set(name, part.source, batch_size=settings.eval_batch_size, reading=settings.reading, workers=settings.workers)
        return cached.extract(
            network,
            part.source,
            batches,
            blocks=max(settings.blocks),
            sides=prepared(network, settings.size, settings.resize),
            reading=settings.reading,
            directory=place(settings.features) if settings.features else None,
            numbers=part.numbers,
        )

    test = extract("test", parts.test)
    return (test if settings.select == "test" else extract("validation", parts.choose)), test


def _kinds(width: int, settings: Settings) -> _Kinds:
    """The kinds of features in `width` columns: the cls tokens of the last blocks, and the mean patch token."""
    columns = cached.columns(width // (max(settings.blocks) + 1), settings.blocks, settings.pooling)
    titles = {f"kind_{place}": title for place, title in enumerate(columns)}
    return _Kinds({kind: columns[title] for kind, title in titles.items()}, titles)


def _training(network: Network, settings: Settings, parts: Parts, kinds: _Kinds, choose: cached.Part) -> run.Training:
    per_epoch, classes = len(parts.train.source) // settings.batch_size, len(parts.classes)
    score = "test/top1" if settings.select == "test" else "validation/top1"
    total = settings.epochs * per_epoch

    def evaluate(params: PyTree, running: PyTree) -> Iterator[tuple[str, float]]:
        best, accuracy = _best(params, kinds, choose)
        yield score, accuracy[best.kind][best.rate]

    return run.Training(
        kind="linear",
        loss=heads.heads_loss(kinds.columns),
        optimizer=heads.optimizer(_grid(settings), per_epoch),
        init=lambda: (heads.stacked_heads(kinds.columns, len(settings.rates), classes, settings.seed), {}),
        batches=images.augmented_batches(
            parts.train,
            RandomCrop(
                prepared(network, settings.size, settings.resize)[0],
                settings.crop_scale,
                flip_prob=settings.flip_prob,
                backend=settings.reading.backend,
            ),
            seed=settings.seed,
            batch_size=settings.batch_size,
            total_steps=total,
            workers=settings.workers,
            reading=settings.reading,
        ),
        prepare=heads.frozen_features(network, max(settings.blocks)),
        replaced=lambda batch: batch.replaced,
        batch_size=settings.batch_size,
        steps_per_epoch=per_epoch,
        total_steps=total,
        evaluate=evaluate,
        every_steps=settings.eval_every_epochs * per_epoch,
        best=score,
        description=_description(network, settings, parts),
        seed=settings.seed,
        log_every_steps=settings.log_every_steps,
        max_bad_fraction=settings.max_bad_fraction,
        references={
            "loss": len(kinds.columns) * len(settings.rates) * math.log(classes),
            "best_loss": math.log(classes),
            score: 1 / classes,
        },
    )


def _best(params: PyTree, kinds: _Kinds, choose: cached.Part) -> tuple[Head, dict[str, list[float]]]:
    """The head with the highest accuracy on the images that choose, and the accuracies of all."""
    accuracy = linear_grid.accuracies(heads.heads_of(params), choose.features, choose.labels, kinds.columns)
    return linear_grid.best_head(accuracy), accuracy


def _by_rate(rates: Sequence[float], values: Sequence[float]) -> dict[str, float]:
    return {f"{rate:g}": value for rate, value in zip(rates, values, strict=True)}


def _description(network: Network, settings: Settings, parts: Parts) -> dict[str, Any]:
    """All that determines a training: the settings, the network that it sees images by, and the images."""
    learning = {key: value for key, value in settings._asdict().items() if key not in _RUNNING}
    return {**learning, "reading": repr(settings.reading), "network": digest(network), "images": parts.digests()}


def _probe_data(settings: Settings) -> ProbeData:
    """The settings that cached features need, under their names there. Features are not scaled, as in DINO."""
    values = settings._asdict() | {"batch_size": settings.eval_batch_size, "scaling": "none"}
    return ProbeData(**{key: values[key] for key in ProbeData._fields})


def _grid(settings: Settings) -> GridSettings:
    return GridSettings(settings.rates, settings.epochs, settings.batch_size, settings.momentum, settings.weight_decay, settings.seed)


def _among(values: Mapping[str, Any], wrong: Collection[str], processes: int) -> list[str]:
    """Mistakes of right values among each other."""
    lines = probe_data.among(values, {*wrong, "batch_size"}, processes)
    for key in {"batch_size", "eval_batch_size"} - set(wrong):
        lines += batch_of_processes(key, values[key], processes)
    return lines


_SHARED = {key: rule for key, rule in probe_data.RULES.items() if key != "scaling"}
PROTOCOL = Protocol(
    "linear",
    {
        **_SHARED,
        "rates": Rule(float, low=0.0, above=True, length=0),
        "epochs": Rule(int, low=1),
        "momentum": number(0.0, 1.0),
        "weight_decay": number(),
        "cached": Rule(bool),
        "crop_scale": interval(1.0),
        "flip_prob": SHARE,
        "eval_every_epochs": Rule(int, low=1),
        "eval_batch_size": Rule(int, low=1),
        "log_every_steps": Rule(int, low=1),
        "random_init": Rule(bool),
        "max_bad_fraction": TRAINING["data.max_bad_fraction"],
    },
    Settings,
    linear,
    columns=outcome.columns,
    among=_among,
)
