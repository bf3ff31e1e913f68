"""From a config to its optimizer, its schedules and what does not move. A part of `build`."""

from __future__ import annotations

from typing import NamedTuple

import optax
from ml_collections import ConfigDict

from sere_jax.train import optim
from sere_jax.train import schedules
from sere_jax.build.objective import Steps
from sere_jax.types import Schedule


class OptimizerSchedules(NamedTuple):
    """Functions of the step: learning rate, weight decay, and the teacher's momentum."""

    learning_rate: Schedule
    weight_decay: Schedule
    ema_momentum: Schedule


def optimizer_schedules(config: ConfigDict, length: Steps) -> OptimizerSchedules:
    """lr_peak = base_lr * batch_size / 256. With accumulation schedules are laid out in micro-batches and read once a window."""
    optimizer, parts = config.optimizer, config.optimizer.accumulate_steps
    total = length.total * parts
    rate = schedules.warmup_cosine(
        optimizer.base_lr * config.data.batch_size / 256,
        optimizer.min_lr,
        warmup_steps=min(optimizer.warmup_epochs * length.per_epoch, length.total) * parts,
        steps=total,
        inclusive=optimizer.warmup == "inclusive",
    )
    decay = schedules.cosine(optimizer.weight_decay, optimizer.weight_decay_end, total)
    momentum = schedules.cosine(config.teacher.ema_momentum, config.teacher.ema_momentum_end, total)
    return OptimizerSchedules(*(schedules.every(schedule, parts) for schedule in (rate, decay, momentum)))


def optimizer(config: ConfigDict, length: Steps) -> optax.GradientTransformationExtraArgs:
    """The optimizer of the config."""
    settings, schedules = config.optimizer, optimizer_schedules(config, length)
    rules = optim.Rules(
        learning_rate=schedules.learning_rate,
        weight_decay=schedules.weight_decay,
        clip_grad=settings.clip_grad,
        decay_bias=settings.decay_bias,
        decay_scale=settings.decay_scale,
        freeze_last_layer_steps=settings.freeze_last_layer_epochs * length.per_epoch,
        freeze_backbone_steps=settings.freeze_backbone_epochs * length.per_epoch,
        frozen=frozen(config),
    )
    if settings.name == "sgd":
        return optim.sgd(rules, momentum=settings.momentum)
    if settings.name == "lars":
        return optim.lars(rules, momentum=settings.momentum, trust_coefficient=settings.trust_coefficient)
    return optim.adamw(rules, beta2=settings.beta2)


def frozen(config: ConfigDict) -> tuple[str, ...]:
    """Prefixes of the parameters that stay as they were made: fixed positions, and a patch embedding that is not trained."""
    model = config.model
    if model.name != "vit":
        return ()
    positions = () if model.positions == "learned" else ("backbone/pos_embed",)
    return (*positions, "backbone/patch_embed") if model.freeze_patch_embed else positions
