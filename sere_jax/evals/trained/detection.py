"""Training of a detector, Cascade Mask R-CNN: the protocol `detection`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sere_jax.buckets import Location
from sere_jax.data.annotations.placement import MultiScale, WholeImage
from sere_jax.data.batches.detection import buckets, detection_batches
from sere_jax.data.sources.example import Source
from sere_jax.data.sources.with_objects import WithObjects
from sere_jax.evals.detection import outcome
from sere_jax.evals.detection.data import open_sets
from sere_jax.evals.detection.outcome import Outcome, Row
from sere_jax.evals.detection.tester import Tester
from sere_jax.evals.network import EvalError, Network, digest, shared_reading, untrained
from sere_jax.evals.outcome import slugs
from sere_jax.evals.protocol import Protocol
from sere_jax.evals.trained import layers, run
from sere_jax.evals.trained.detection_settings import RULES, Settings, among
from sere_jax.evals.trained.detector import Model
from sere_jax.evals.trained.images import notes_of_both, training_images
from sere_jax.train import optim, schedules
from sere_jax.types import DetectionBatch, PyTree, Schedule
from sere_jax.writing import place

_log = logging.getLogger(__name__)

# What a training does not depend on: it is resumed with other values of these. Of the images their digests count, not their paths.
_RUNNING = (
    *("workers", "log_every_steps", "random_init", "panels", "reading", "train", "test"),
    *("test_size", "test_longest", "test_batch_size", "max_bad_fraction"),
)


def detect(networks: Sequence[Network], workdir: Location, settings: Settings) -> None:
    """Train and test every network, print the table and write what `detection.outcome` lists.

    Raises EvalError for settings that do not fit the networks, the images or the devices; and what `run.train` raises.
    """
    run.check_batch(settings.batch_size, settings.accumulate_steps)
    settings = settings._replace(reading=shared_reading(networks, settings.reading))
    train, test = open_sets(settings.train, settings.test, masks=settings.masks)
    _check(train, settings)
    classes = list(train.object_classes or ())
    compared = [*([untrained(networks[0], settings.seed)] if settings.random_init else []), *networks]
    # Checks all before the first is trained.
    models = [Model(network, settings, len(classes), masks=settings.masks) for network in compared]
    rows: list[Row] = []
    for network, model in zip(compared, models, strict=True):
        tester = Tester(
            model.detections,
            test,
            placing=WholeImage(settings.test_size, settings.test_longest),
            batch_size=settings.test_batch_size,
            multiple=model.multiple,
            reading=settings.reading,
        )
        if not rows:
            _warn(outcome.unjudged_masks(tester.truth, settings.masks), settings.test)
        rows.append(_row(network, model, tester, workdir, settings, train, test))
    trained = [place(row.about["training"]) for row in rows]
    images = {"train": training_images(settings.train, train, trained, settings.reading), "test": tester.images()}
    shown = {key: value for key, value in settings._asdict().items() if key not in ("reading", "workers", "panels")}
    heading = f"detection: {images['test'].read:,} images of {settings.test}, {len(classes):,} classes"
    longest, size = settings.test_longest, settings.test_size
    how = f"test: the sides fit into {longest} x {size} pixels; scores are of the last step"
    notes = [*train.notes(), how, *notes_of_both(train, test)]
    outcome.publish(Outcome("detection", heading, shown, images, classes, tester.truth, rows, notes), workdir)


def _check(train: WithObjects, settings: Settings) -> None:
    """Raise EvalError where the training images do not fit the settings."""
    if len(train) < settings.batch_size:
        raise EvalError(f"batch_size: found {settings.batch_size}, expected at most the {len(train)} training images with objects")
    if settings.masks and not train.masks:
        raise EvalError(f"masks: found True, and {settings.train} has boxes alone; expected False")


def _warn(notes: Iterable[str], spec: str) -> None:
    """Log before the training what the table says after it."""
    for note in notes:
        _log.warning("%s: %s", ascii(spec)[1:-1], note)


def _row(network: Network, model: Model, tester: Tester, workdir: Location, settings: Settings, train: WithObjects, test: Source) -> Row:
    training = _training(network, settings, model, tester, train, test)
    trained = run.train(training, run.place(workdir, "detection", slugs([network.name])[0], training.description))
    judged = tester(trained.last.params, trained.last.running)
    baseline = network.name == "random init"
    about = {**network.about, "training": str(trained.directory)}
    drawn = None if baseline or jax.process_index() else tester.draw(judged, settings.panels)
    return Row(
        network.name, judged.scores(), judged, {"steps": trained.last.step}, about, baseline, {"best_step": trained.best.step}, drawn
    )


def learning_rate(settings: Settings, steps_per_epoch: int) -> Schedule:
    """A tenth after each of the epochs `milestones`; in the warm-up times s + (1 - s) step / warm-up with s = `warmup_start`."""
    falling = schedules.steps_down(settings.learning_rate, 0.1, [epoch * steps_per_epoch for epoch in settings.milestones])
    start = settings.warmup_start

    def value(step: jax.Array) -> jax.Array:
        passed = jnp.clip(jnp.asarray(step, jnp.float32) / max(settings.warmup_steps, 1), 0.0, 1.0)
        return falling(step) * (start + (1.0 - start) * passed)

    return value if settings.warmup_steps else falling


def optimizer(settings: Settings, model: Model, steps_per_epoch: int) -> Any:
    """AdamW with layer-wise decay of the rate; biases and scales are not decayed, positions and tokens are."""
    rules = optim.Rules(
        learning_rate=learning_rate(settings, steps_per_epoch),
        weight_decay=lambda step: jnp.float32(settings.weight_decay),
        factor=layers.layer_decay(settings.layer_decay, depth=model.depth, stages=model.stages),
    )
    return optim.adamw(rules)


def _training(network: Network, settings: Settings, model: Model, tester: Tester, train: WithObjects, test: Source) -> run.Training:
    def evaluate(params: PyTree, running: PyTree) -> Iterator[tuple[str, float]]:
        return ((f"test/{name}", value) for name, value in tester(params, running).scores().items())

    learning = {key: value for key, value in settings._asdict().items() if key not in _RUNNING}
    steps_per_epoch = len(train) // settings.batch_size
    images = {"train": train.fingerprint().digest, "test": test.fingerprint().digest}
    return run.Training(
        kind="detection",
        loss=model.loss,
        optimizer=optimizer(settings, model, steps_per_epoch),
        init=model.init,
        batches=batches(train, settings, steps_per_epoch, model.multiple),
        replaced=lambda batch: batch.replaced,
        batch_size=settings.batch_size,
        steps_per_epoch=steps_per_epoch,
        total_steps=settings.epochs * steps_per_epoch,
        evaluate=evaluate,
        every_steps=min(settings.eval_every_epochs, settings.epochs) * steps_per_epoch,
        best="test/box_ap",
        description={**learning, "reading": repr(settings.reading), "network": digest(network), "images": images},
        seed=settings.seed,
        accumulate_steps=settings.accumulate_steps,
        log_every_steps=settings.log_every_steps,
        max_bad_fraction=settings.max_bad_fraction,
        logged={"learning_rate": learning_rate(settings, steps_per_epoch)},
    )


def batches(train: WithObjects, settings: Settings, steps_per_epoch: int, multiple: int) -> Callable[[int], Iterator[DetectionBatch]]:
    """step -> this process's rows of the batches from that step on; the sides of their images are multiples of `multiple` pixels."""
    placing = MultiScale(
        sizes=settings.sizes,
        longest=settings.longest,
        before_crop=settings.before_crop,
        crop_range=settings.crop_range,
        crop_prob=settings.crop_prob,
        flip_prob=settings.flip_prob,
    )

    def made(start_step: int) -> Iterator[DetectionBatch]:
        return detection_batches(
            train,
            placing=placing,
            shapes=buckets(max(settings.sizes), settings.longest, multiple),
            seed=settings.seed,
            batch_size=settings.batch_size,
            total_steps=settings.epochs * steps_per_epoch,
            start_step=start_step,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            workers=settings.workers,
            reading=settings.reading,
            count=settings.objects,
            masks=settings.masks,
        )

    return made


PROTOCOL = Protocol("detection", RULES, Settings, detect, columns=outcome.columns, among=among)
