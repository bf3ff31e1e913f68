"""Fine-tuning a whole network on labelled images: the protocols `finetune`, `semi` and `transfer`, which differ in their configs only."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sere_jax.config.cross import batch_of_processes, resize_before_crop
from sere_jax.config.keys import RULES as TRAINING
from sere_jax.config.rule import SHARE, Rule, number
from sere_jax.data.annotations.rand_augment import AugmentedCrop, RandAugment
from sere_jax.data.annotations.transforms import RandomCrop
from sere_jax.data.batches.labelled import LabelledBatch
from sere_jax.data.images.reading import ImageReading
from sere_jax.evals import outcome
from sere_jax.evals.features import normalise
from sere_jax.evals.frozen.comparison import SIDE
from sere_jax.evals.frozen.probe_data import SELECT
from sere_jax.evals.network import EvalError, Network, prepared, shared_reading, untrained
from sere_jax.evals.protocol import Protocol
from sere_jax.evals.trained import layers, run
from sere_jax.evals.trained.images import Parts, Predicted, Predictor, Whole, augmented_batches, open_parts, prefixed
from sere_jax.losses.supervised import smoothed_targets, soft_cross_entropy
from sere_jax.models.classifier import POOLINGS, Classifier
from sere_jax.models.norm import split_statistics
from sere_jax.ops.erasing import erase
from sere_jax.ops.mixing import Mixing, mix
from sere_jax.train import optim, schedules
from sere_jax.train.update import LossOutput
from sere_jax.types import PyTree, Schedule


class Settings(NamedTuple):
    """The keys of `configs/eval/finetune.py`, which explains them."""

    train: str
    validation: str
    test: str
    select: str
    held_out: float
    pool: str
    head_layer: int
    head_std: float
    epochs: int
    warmup_epochs: int
    base_lr: float
    min_lr: float
    batch_size: int
    accumulate_steps: int
    weight_decay: float
    layer_decay: float
    drop_path: float
    mixup: float
    cutmix: float
    switch_prob: float
    mix_prob: float
    smoothing: float
    erase_prob: float
    rand_magnitude: float
    rand_deviation: float
    crop_scale: tuple[float, float]
    flip_prob: float
    size: int
    resize: int
    eval_every_epochs: int
    eval_batch_size: int
    log_every_steps: int
    workers: int
    reading: ImageReading
    dtype: str
    random_init: bool
    save_predictions: bool
    seed: int


RULES: Mapping[str, Rule] = {
    "train": Rule(str),
    "validation": Rule(str),
    "test": Rule(str),
    "select": Rule(str, choices=SELECT),
    "held_out": Rule(float, low=0.0, high=0.9, above=True),
    "pool": Rule(str, choices=POOLINGS),
    "head_layer": Rule(int, low=0, high=1),
    "head_std": number(above=True),
    "epochs": Rule(int, low=1),
    "warmup_epochs": Rule(int, low=0),
    "base_lr": number(above=True),
    "min_lr": number(),
    "batch_size": Rule(int, low=1),
    "accumulate_steps": Rule(int, low=1),
    "weight_decay": number(),
    "layer_decay": number(0.0, 1.0, above=True),
    "drop_path": number(0.0, 0.9),
    "mixup": number(),
    "cutmix": number(),
    "switch_prob": SHARE,
    "mix_prob": SHARE,
    "smoothing": number(0.0, 0.9),
    "erase_prob": SHARE,
    "rand_magnitude": number(0.0, 10.0),
    "rand_deviation": number(),
    "crop_scale": Rule(float, low=0.0, high=1.0, above=True, length=2, ordered=True),
    "flip_prob": SHARE,
    "size": SIDE,
    "resize": SIDE,
    "eval_every_epochs": Rule(int, low=1),
    "eval_batch_size": Rule(int, low=1),
    "log_every_steps": Rule(int, low=1),
    "workers": Rule(int, low=0),
    "backend": TRAINING["data.backend"],
    "max_pixels": TRAINING["data.max_pixels"],
    "dtype": Rule(str, choices=("float32", "bfloat16")),
    "random_init": Rule(bool),
    "save_predictions": Rule(bool),
    "seed": TRAINING["seed"],
}
# What a training does not depend on: it is resumed with other values of these.
_RUNNING = ("workers", "log_every_steps", "eval_batch_size", "random_init", "save_predictions", "reading")


def among(values: Mapping[str, Any], wrong: Collection[str], processes: int) -> list[str]:
    """Mistakes of right values among each other."""
    lines = [] if {"size", "resize"} & set(wrong) else resize_before_crop("", values["size"], values["resize"])
    for key in {"batch_size", "eval_batch_size"} - set(wrong):
        lines += batch_of_processes(key, values[key], processes)
    if values["select"] == "validation" and not values["validation"]:
        lines.append("validation: found '', expected a source of labelled images, since select is validation")
    if not {"epochs", "warmup_epochs"} & set(wrong) and values["warmup_epochs"] > values["epochs"]:
        lines.append(f"warmup_epochs: found {values['warmup_epochs']}, expected at most the {values['epochs']} epochs")
    if values["head_layer"] == 1 and values["pool"] != "cls":
        lines.append("pool: found patches, expected cls, since head_layer is 1: the projection was trained on the cls token")
    return lines


def fine_tune(protocol: str, networks: Sequence[Network], workdir: Path, settings: Settings) -> None:
    """Train and test every network, print the table and write what `outcome.publish` writes.

    Raises EvalError for settings that do not fit the networks, the images or the devices; and what `run.train` raises.
    """
    run.check_batch(settings.batch_size, settings.accumulate_steps)
    reading = shared_reading(networks, settings.reading)
    parts = open_parts(
        settings.train, settings.validation, settings.test, select=settings.select, share=settings.held_out, seed=settings.seed
    )
    if len(parts.train.source) < settings.batch_size:
        raise EvalError(f"batch_size: found {settings.batch_size}, expected at most the {len(parts.train.source)} training images")
    random = [untrained(networks[0], settings.seed)] if settings.random_init else []
    rows: list[outcome.Row] = []
    images: dict[str, outcome.Images] = {}
    for network in [*random, *networks]:
        row, images = _row(protocol, network, workdir, settings._replace(reading=reading), parts)
        rows.append(row)
    outcome.publish(
        outcome.Outcome(
            protocol,
            f"{protocol}: {images['test'].read:,} images of {settings.test}, {len(parts.classes):,} classes",
            settings._asdict(),
            images,
            parts.classes,
            rows,
            list(_notes(settings, parts)),
        ),
        workdir,
        save_predictions=settings.save_predictions,
    )


def _row(protocol: str, network: Network, workdir: Path, settings: Settings, parts: Parts) -> tuple[outcome.Row, dict[str, outcome.Images]]:
    """Train one network; its row, and what was read of the images."""
    model = Model(network, settings, len(parts.classes))
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
        about={**network.about, "training": str(trained.directory)},
        baseline=network.name == "random init",
    )
    read = {"train": outcome.Images(settings.train, len(parts.train.source)), "test": best.images}
    if settings.select != "test":
        read["validation"] = outcome.Images(parts.choose.spec, len(parts.choose.source))
    return row, read


def _scores(predicted: Predicted) -> dict[str, float]:
    return outcome.score(predicted.predictions.logits, predicted.predictions.labels)


def _notes(settings: Settings, parts: Parts) -> Iterator[str]:
    if settings.select == "test":
        yield "the best epoch was chosen on the test images (select=test): its scores are too good; those of the last epoch are not"
    if parts.in_both:
        yield f"{parts.in_both:,} of {len(parts.test.source):,} test images are training images too: the scores are too good"


class Model:
    """A network as a classifier: its modules for training and evaluation, its first weights, and its loss."""

    def __init__(self, network: Network, settings: Settings, classes: int) -> None:
        if network.module is None:
            raise EvalError(f"{network.name}: has no module, expected a network that can be trained")
        self.sides = prepared(network, settings.size, settings.resize)
        self._network, self._settings, self._classes = network, settings, classes
        self._projection = network.projection() if settings.head_layer and network.projection else {}
        if settings.head_layer and not self._projection and network.name != "random init":
            raise EvalError(f"head_layer: found 1, and {network.name} holds no projection head; expected 0")
        dtype = jnp.dtype(settings.dtype)
        is_vit = bool(network.module.heads)
        kinds: tuple[dict[str, Any], ...] = ({}, {})
        if is_vit:
            kinds = ({"drop_path": settings.drop_path}, {})
        else:
            kinds = ({"running_statistics": False}, {"running_statistics": True})
        backbones = (network.module.clone(**kind, dtype=dtype, parent=None, name=None) for kind in kinds)
        hidden = int(self._projection["kernel"].shape[1]) if self._projection else 0
        shared: dict[str, Any] = {
            "classes": classes,
            "pool": settings.pool,
            "head_std": settings.head_std,
            "hidden": hidden,
            "norm_eps": network.module.norm_eps if is_vit else 1e-6,
            "fc_norm": is_vit,
        }
        self.training, self.evaluation = (Classifier(backbone, **shared) for backbone in backbones)
        self.depth = network.module.depth if is_vit else 0
        self.stages = () if is_vit else tuple(network.module.stages)

    def init(self) -> tuple[PyTree, PyTree]:
        """The network's own weights under a fresh head; running statistics apart."""
        side = self.sides[0]
        images = jnp.zeros((1, side, side, self._network.channels))
        fresh = jax.jit(self.evaluation.init)(jax.random.key(self._settings.seed), images)["params"]
        variables = split_statistics(self._network.params)
        params = {name: jax.tree.map(np.asarray, leaf) for name, leaf in fresh.items() if name != "backbone"}
        params["backbone"] = jax.tree.map(np.asarray, variables["params"])
        if self._projection:
            params["projection"] = dict(self._projection)
        running = {"backbone": jax.tree.map(np.asarray, variables["batch_stats"])} if variables["batch_stats"] else {}
        return params, running

    def logits(self, params: PyTree, running: PyTree, images: jax.Array) -> jax.Array:
        """Logits of normalised images, as evaluated."""
        return self.evaluation.apply({"params": params, "batch_stats": running}, images)  # type: ignore[return-value]

    def loss(self, params: PyTree, running: PyTree, batch: LabelledBatch, keys: jax.Array) -> tuple[jax.Array, LossOutput]:
        """Cross-entropy of an augmented batch: normalised, erased, mixed; targets smoothed and mixed alike."""
        settings = self._settings
        erase_keys, mix_keys, path_keys = jax.vmap(lambda key: jax.random.split(key, 3), out_axes=1)(keys)
        images = erase(normalise(batch.images, self._network.mean, self._network.std), erase_keys, settings.erase_prob)
        targets = smoothed_targets(batch.labels, self._classes, settings.smoothing)
        mixing = Mixing(settings.mixup, settings.cutmix, settings.switch_prob, settings.mix_prob)
        images, targets = mix(images, targets, mix_keys[0], mixing)
        noise = None
        if self.depth and settings.drop_path:
            noise = jax.vmap(lambda key: jax.random.uniform(key, (self.depth, 2)))(path_keys)
        variables = {"params": params, "batch_stats": running}
        logits, updated = self.training.apply(variables, images, drop_path_noise=noise, mutable=["batch_stats"])
        return soft_cross_entropy(logits, targets), LossOutput({**running, **updated.get("batch_stats", {})}, {})


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
        ),
        replaced=lambda batch: batch.replaced,
        batch_size=settings.batch_size,
        steps_per_epoch=per_epoch,
        total_steps=settings.epochs * per_epoch,
        evaluate=evaluate,
        every_steps=settings.eval_every_epochs * per_epoch,
        best="test/top1" if settings.select == "test" else "validation/top1",
        description=_description(network, settings, parts),
        seed=settings.seed,
        accumulate_steps=settings.accumulate_steps,
        log_every_steps=settings.log_every_steps,
        references={"loss": math.log(len(parts.classes))},
        logged={"learning_rate": rate},
    )


def _description(network: Network, settings: Settings, parts: Parts) -> dict[str, Any]:
    """All that determines a training: the settings, the weights that it starts from, and the images."""
    learning = {key: value for key, value in settings._asdict().items() if key not in _RUNNING}
    images = {name: part.source.fingerprint().digest for name, part in (("train", parts.train), ("choose", parts.choose))}
    return {**learning, "reading": repr(settings.reading), "weights": run.weights_digest(network.params), "images": images}


def _protocol(name: str) -> Protocol:
    start: Callable[..., None] = functools.partial(fine_tune, name)
    return Protocol(name, RULES, Settings, start, columns=outcome.columns, among=among)


FINE_TUNE, SEMI, TRANSFER = _protocol("finetune"), _protocol("semi"), _protocol("transfer")
