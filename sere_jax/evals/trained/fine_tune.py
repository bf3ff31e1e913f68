"""Fine-tuning a whole network on labelled images: the protocols `finetune`, `semi` and `transfer`, which differ in their configs only."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp

from sere_jax.buckets import Location
from sere_jax.data.annotations.rand_augment import AugmentedCrop, RandAugment
from sere_jax.data.annotations.transforms import RandomCrop
from sere_jax.evals import outcome
from sere_jax.evals.network import Network, digest, shared_reading, untrained
from sere_jax.evals.protocol import Protocol
from sere_jax.evals.trained import layers, run
from sere_jax.evals.trained.images import (
    Parts,
    Predicted,
    Predictor,
    Whole,
    augmented_batches,
    check_enough,
    notes,
    open_parts,
    prefixed,
    training_images,
)
from sere_jax.evals.trained.model import Model
from sere_jax.evals.trained.settings import RULES, Settings, among
from sere_jax.train import optim, schedules
from sere_jax.types import PyTree, Schedule
from sere_jax.writing import place

# What a training does not depend on: it is resumed with other values of these. Of the images their digests count, not their paths.
_RUNNING = (
    *("workers", "log_every_steps", "eval_batch_size", "random_init", "save_predictions", "reading"),
    *("train", "validation", "test", "max_bad_fraction"),
)


def fine_tune(protocol: str, networks: Sequence[Network], workdir: Location, settings: Settings) -> None:
    """Train and test every network, print the table and write what `outcome.publish` writes.

    Raises EvalError for settings that do not fit the networks, the images or the devices; and what `run.train` raises.
    """
    run.check_batch(settings.batch_size, settings.accumulate_steps)
    reading = shared_reading(networks, settings.reading)
    parts = open_parts(
        settings.train, settings.validation, settings.test, select=settings.select, share=settings.held_out, seed=settings.seed
    )
    check_enough(parts, settings.batch_size)
    settings = settings._replace(reading=reading)
    random = [untrained(networks[0], settings.seed)] if settings.random_init else []
    models = [(network, Model(network, settings, len(parts.classes))) for network in [*random, *networks]]  # refuses before any training
    rows: list[outcome.Row] = []
    images: dict[str, outcome.Images] = {}
    for network, model in models:
        row, images = _row(protocol, network, model, workdir, settings, parts)
        rows.append(row)
    trained = [place(row.about["training"]) for row in rows]
    images = {"train": training_images(settings.train, parts.train.source, trained, reading), **images}
    outcome.publish(
        outcome.Outcome(
            protocol,
            f"{protocol}: {images['test'].read:,} images of {settings.test}, {len(parts.classes):,} classes",
            settings._asdict(),
            images,
            parts.classes,
            rows,
            list(notes(parts, settings.select)),
        ),
        workdir,
        save_predictions=settings.save_predictions,
    )


def _row(
    protocol: str, network: Network, model: Model, workdir: Location, settings: Settings, parts: Parts
) -> tuple[outcome.Row, dict[str, outcome.Images]]:
    """Train one network; its row, and what was read of the test and the validation images."""
    whole = Whole(*model.sides, settings.eval_batch_size, settings.workers, settings.reading, network.mean, network.std)
    predictor = Predictor(model.logits, whole)
    training = _training(protocol, network, settings, parts, model, predictor)
    name = outcome.slugs([network.name])[0]
    trained = run.train(training, run.place(workdir, protocol, name, training.description))
    best, last = (predictor(weights.params, weights.running, parts.test) for weights in (trained.best, trained.last))
    per_epoch = len(parts.train.source) // settings.batch_size
    row = outcome.row(
        network.name,
        best.predictions,
        extra={f"last_{key}": value for key, value in _scores(last).items() if key != "per_class"},
        head={"epoch": trained.best.step // per_epoch},
        about={**network.about, "training": str(trained.directory), "best_step": trained.best.step},
        baseline=network.name == "random init",
    )
    read = {"test": best.images}
    if settings.select != "test":
        read["validation"] = predictor(trained.best.params, trained.best.running, parts.choose).images
    return row, read


def _scores(predicted: Predicted) -> dict[str, float]:
    return outcome.score(predicted.predictions.logits, predicted.predictions.labels)


def optimizer(settings: Settings, model: Model, rate: Schedule) -> Any:
    """AdamW with layer-wise decay of the rate; biases, scales, positions and tokens are not decayed."""
    rules = optim.Rules(
        learning_rate=rate,
        weight_decay=lambda step: jnp.float32(settings.weight_decay),
        decayed=layers.decayed,
        factor=layers.layer_decay(settings.layer_decay, depth=model.depth, stages=model.stages),
    )
    return optim.adamw(rules)


def learning_rate(settings: Settings, per_epoch: int) -> Schedule:
    """base_lr x batch_size / 256, after a linear warm-up from 0 that ends short of it; then a half cosine to min_lr, by step."""
    return schedules.warmup_cosine(
        settings.base_lr * settings.batch_size / 256,
        settings.min_lr,
        warmup_steps=settings.warmup_epochs * per_epoch,
        steps=settings.epochs * per_epoch,
        inclusive=False,
    )


def _training(protocol: str, network: Network, settings: Settings, parts: Parts, model: Model, predictor: Predictor) -> run.Training:
    per_epoch = len(parts.train.source) // settings.batch_size
    rate = learning_rate(settings, per_epoch)
    crop = RandomCrop(model.sides[0], settings.crop_scale, flip_prob=settings.flip_prob, backend=settings.reading.backend)
    fill = tuple(min(255, round(255 * mean)) for mean in network.mean)
    changes = RandAugment(settings.rand_magnitude, settings.rand_deviation, fill=fill) if settings.rand_magnitude else None

    def evaluate(params: PyTree, running: PyTree) -> Iterator[tuple[str, float]]:
        yield from prefixed(_scores(predictor(params, running, parts.test)), "test")
        if settings.select != "test":
            yield from prefixed(_scores(predictor(params, running, parts.choose)), "validation")

    return run.Training(
        kind="fine_tune",
        loss=model.loss,
        optimizer=optimizer(settings, model, rate),
        init=model.init,
        batches=augmented_batches(
            parts.train,
            AugmentedCrop(crop, changes),
            seed=settings.seed,
            batch_size=settings.batch_size,
            total_steps=settings.epochs * per_epoch,
            workers=settings.workers,
            reading=settings.reading,
            repeats=settings.repeats,
        ),
        replaced=lambda batch: batch.replaced,
        batch_size=settings.batch_size,
        steps_per_epoch=per_epoch,
        total_steps=settings.epochs * per_epoch,
        evaluate=evaluate,
        every_steps=settings.eval_every_epochs * per_epoch,
        best="test/top1" if settings.select == "test" else "validation/top1",
        description=_description(network, settings, parts),
        network=model.description(parts.classes),
        seed=settings.seed,
        accumulate_steps=settings.accumulate_steps,
        log_every_steps=settings.log_every_steps,
        max_bad_fraction=settings.max_bad_fraction,
        references={"loss": math.log(len(parts.classes))},
        logged={"learning_rate": rate},
    )


def _description(network: Network, settings: Settings, parts: Parts) -> dict[str, Any]:
    """All that determines a training: the settings, the weights that it starts from, and the images."""
    learning = {key: value for key, value in settings._asdict().items() if key not in _RUNNING}
    if settings.head_layer and network.projection:
        learning["projection"] = digest(network._replace(params=network.projection()))
    return {**learning, "reading": repr(settings.reading), "network": digest(network), "images": parts.digests()}


def _protocol(name: str) -> Protocol:
    start: Callable[..., None] = functools.partial(fine_tune, name)
    return Protocol(name, RULES, Settings, start, columns=outcome.columns, among=among)


FINE_TUNE, SEMI, TRANSFER = _protocol("finetune"), _protocol("semi"), _protocol("transfer")
