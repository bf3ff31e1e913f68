"""Training of segmentation heads: the protocols `segmentation_linear`, `upernet` and `imagenet_s`, which differ in their configs only."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sere_jax import distributed
from sere_jax.buckets import Location
from sere_jax.data.annotations.scale_crop import ScaleCrop
from sere_jax.data.annotations.transforms import RandomCrop, Transform
from sere_jax.data.batches.labelled import labelled_batches
from sere_jax.data.sources.example import Source
from sere_jax.evals.network import EvalError, Network, digest, shared_reading, untrained
from sere_jax.evals.outcome import slugs
from sere_jax.evals.protocol import Protocol
from sere_jax.evals.segmentation import outcome
from sere_jax.evals.segmentation.label_check import check_label_maps
from sere_jax.evals.segmentation.labelling import Labelling, check_same_classes, labelling, open_masked
from sere_jax.evals.segmentation.outcome import Outcome, Row
from sere_jax.evals.segmentation.pictures import PictureFiles
from sere_jax.evals.trained import layers, run
from sere_jax.evals.trained.images import notes_of_both, training_images
from sere_jax.evals.trained.segmentation_settings import RULES, Settings, among
from sere_jax.evals.trained.segmentation_test import Tester, mean_levels
from sere_jax.evals.trained.segmenter import Batch, Model
from sere_jax.train import optim, schedules
from sere_jax.types import PyTree, Schedule
from sere_jax.writing import place

# What a training does not depend on: it is resumed with other values of these. Of the images their digests count, not their paths.
_RUNNING = (
    "workers",
    "log_every_steps",
    "random_init",
    "save_predictions",
    "panels",
    "reading",
    "train",
    "test",
    "stride",
    "test_flip",
    "test_scales",
    "test_resize",
    "submission",
    "max_bad_fraction",
)


def segment(protocol: str, networks: Sequence[Network], workdir: Location, settings: Settings) -> None:
    """Train and test every network, print the table and write what `segmentation.outcome` lists.

    Raises EvalError for settings that do not fit the networks, the images or the devices; and what `run.train` raises.
    """
    run.check_batch(settings.batch_size, settings.accumulate_steps)
    settings = settings._replace(reading=shared_reading(networks, settings.reading))
    train, test = open_masked("train", settings.train), open_masked("test", settings.test)
    if len(train) < settings.batch_size:
        raise EvalError(f"batch_size: found {settings.batch_size}, expected at most the {len(train)} training images")
    classes = labelling(train, classes=settings.classes, ignore=settings.ignore, zero_ignored=settings.zero_ignored)
    check_same_classes(train, test)
    compared = [*([untrained(networks[0], settings.seed)] if settings.random_init else []), *networks]
    models = [Model(network, settings, len(classes.classes)) for network in compared]  # checks all before the first is trained
    with distributed.together():
        check_label_maps("train", train, classes, settings.reading)
        check_label_maps("test", test, classes, settings.reading)
    rows: list[Row] = []
    for network, model, slug in zip(compared, models, slugs([network.name for network in compared]), strict=True):
        tester = Tester(model, network, test, classes, settings)
        rows.append(_row(protocol, network, slug, model, tester, workdir, settings, classes, train, test))
    trained = [place(row.about["training"]) for row in rows]
    tested = tester.images()  # of all processes, before process 0 may read the training images again
    images = {"train": training_images(settings.train, train, trained, settings.reading, maps=True), "test": tested}
    shown = {key: value for key, value in settings._asdict().items() if key not in ("reading", "workers", "save_predictions", "panels")}
    heading = f"{protocol}: {images['test'].read:,} images of {settings.test}, {len(classes.classes):,} classes"
    notes = [_how(settings), *notes_of_both(train, test)]
    outcome.publish(Outcome(protocol, heading, shown, images, classes, rows, notes), workdir)


def _how(settings: Settings) -> str:
    limits = f"the sides fit into {max(settings.limits)} x {min(settings.limits)} pixels"
    means = ", the mean of image and mirror image" if settings.test_flip else ""
    if settings.test_scales != (1.0,):
        means += f", the mean over these limits times {', '.join(f'{scale:g}' for scale in settings.test_scales)}"
    if settings.stride:
        return f"test: {limits}, windows of {settings.size} pixels every {settings.stride}{means}; scores are of the last step"
    return f"test: {limits}, the whole image at once{means}; scores are of the last step"


def _row(
    protocol: str,
    network: Network,
    slug: str,
    model: Model,
    tester: Tester,
    workdir: Location,
    settings: Settings,
    classes: Labelling,
    train: Source,
    test: Source,
) -> Row:
    training = _training(network, settings, model, tester, classes, train, test)
    trained = run.train(training, run.place(workdir, protocol, slugs([network.name])[0], training.description))  # the same beside others
    baseline = network.name == "random init"
    directory = workdir / "eval" / f"{protocol}-{slug}-predictions" if settings.save_predictions and not baseline else None
    files = PictureFiles(classes, directory=directory, count=0 if baseline or jax.process_index() else settings.panels)
    tally = tester(trained.last.params, trained.last.running, files)
    scores = tally.scores(settings.absent, objects=not settings.zero_ignored)
    if settings.submission and not baseline:
        tester.submit(trained.last.params, trained.last.running, workdir / "eval" / f"{protocol}-{slug}-submission.zip")
    title = f"{protocol}: {network.name}, mIoU {100 * scores['miou']:.1f} %"
    files.draw(workdir / "figures" / f"{protocol}-{slug}.png", title, [settings.test])
    about = {**network.about, "training": str(trained.directory)}
    return Row(network.name, scores, tally.counts, {"steps": trained.last.step}, about, baseline, {"best_step": trained.best.step})


def learning_rate(settings: Settings) -> Schedule:
    """`cosine`: a linear warm-up from 0, then half a cosine (MAE). `linear`: falls linearly over all steps; in the warm-up times
    p + (1 - p) / 1,000,000 with p = step / warm-up (MMSegmentation's `poly`).
    """
    peak, lowest, warmup = settings.learning_rate, settings.min_learning_rate, settings.warmup_steps
    if settings.schedule == "cosine":
        return schedules.warmup_cosine(peak, lowest, warmup_steps=warmup, steps=settings.steps, inclusive=False)
    falling = schedules.linear(peak, lowest, settings.steps)

    def value(step: jax.Array) -> jax.Array:
        passed = jnp.clip(jnp.asarray(step, jnp.float32) / max(warmup, 1), 0.0, 1.0)
        return falling(step) * (passed + (1.0 - passed) * 1e-6)

    return value if warmup else falling


def optimizer(settings: Settings, model: Model) -> Any:
    """AdamW with layer-wise decay of the rate. Biases and scales are not decayed, positions and tokens by `decay_tokens`.

    A frozen backbone stands still.
    """
    rules = optim.Rules(
        learning_rate=learning_rate(settings),
        weight_decay=lambda step: jnp.float32(settings.weight_decay),
        decayed=optim.is_matrix if settings.decay_tokens else layers.decayed,
        factor=layers.layer_decay(settings.layer_decay, depth=model.depth, stages=model.stages),
        moves_from=lambda path: optim.NEVER if settings.frozen and path.startswith("backbone/") else 0,
    )
    return optim.adamw(rules)


def _training(
    network: Network, settings: Settings, model: Model, tester: Tester, classes: Labelling, train: Source, test: Source
) -> run.Training:
    def evaluate(params: PyTree, running: PyTree) -> Iterator[tuple[str, float]]:
        return ((f"test/{name}", value) for name, value in tester(params, running).scores(settings.absent).items())

    learning = {key: value for key, value in settings._asdict().items() if key not in _RUNNING}
    if norm := model.fine_tuned_norm():
        learning["fc_norm"] = digest(network._replace(params=norm))
    images = {"train": train.fingerprint().digest, "test": test.fingerprint().digest}  # the best step is chosen on the test images
    return run.Training(
        kind="segmentation",
        loss=model.loss,
        optimizer=optimizer(settings, model),
        init=model.init,
        batches=batches(train, classes, network, settings),
        replaced=lambda batch: batch.replaced,
        batch_size=settings.batch_size,
        steps_per_epoch=max(1, len(train) // settings.batch_size),
        total_steps=settings.steps,
        evaluate=evaluate,
        every_steps=min(settings.eval_every_steps, settings.steps),
        best="test/miou",
        description={**learning, "reading": repr(settings.reading), "network": digest(network), "images": images},
        seed=settings.seed,
        accumulate_steps=settings.accumulate_steps,
        log_every_steps=settings.log_every_steps,
        max_bad_fraction=settings.max_bad_fraction,
        references={"pixels": math.log(len(classes.classes))},
        logged={"learning_rate": learning_rate(settings)},
    )


def crops(classes: Labelling, network: Network, settings: Settings) -> Transform:
    """What makes a training crop of an image and its label map."""
    if settings.crops == "resized":
        return RandomCrop(settings.size, settings.crop_scale, flip_prob=settings.flip_prob, backend=settings.reading.backend)
    ignored, *others = (*classes.ignored, *([0] if classes.zero_ignored else []))  # `RULES` ask for at least one
    return ScaleCrop(
        settings.size,
        settings.limits,
        settings.ratios,
        settings.most_of_a_class,
        settings.flip_prob,
        settings.distortion,
        mean_levels(network),
        ignored,
        tuple(others),
    )


def batches(train: Source, classes: Labelling, network: Network, settings: Settings) -> Callable[[int], Iterator[Batch]]:
    """step -> this process's rows of the batches from that step on."""
    transform = crops(classes, network, settings)

    def made(start_step: int) -> Iterator[Batch]:
        rows = labelled_batches(
            train,
            transform=transform,
            maps=True,
            seed=settings.seed,
            batch_size=settings.batch_size,
            total_steps=settings.steps,
            start_step=start_step,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            workers=settings.workers,
            reading=settings.reading,
        )
        for batch in rows:
            assert batch.label_maps is not None  # asked for
            yield Batch(batch.images, np.stack([classes.targets(one, settings.train) for one in batch.label_maps]), batch.replaced)

    return made


def _protocol(name: str) -> Protocol:
    start: Callable[..., None] = functools.partial(segment, name)
    return Protocol(name, RULES, Settings, start, columns=outcome.columns, among=among)


LINEAR, UPERNET, IMAGENET_S = _protocol("segmentation_linear"), _protocol("upernet"), _protocol("imagenet_s")
