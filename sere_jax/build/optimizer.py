"""From a config to its optimizer, its schedules, and the step from which each parameter moves."""

from __future__ import annotations

import functools
from collections.abc import Callable
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
    """The schedules of the config, with peak rate base_lr * batch_size / 256. With accumulation they count micro-batches."""
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
    settings = config.optimizer
    if settings.name == "sgd":
        return optim.sgd(optimizer_rules(config, length), momentum=settings.momentum)
    if settings.name == "lars":
        return optim.lars(optimizer_rules(config, length), momentum=settings.momentum, trust_coefficient=settings.trust_coefficient)
    return optim.adamw(optimizer_rules(config, length), beta2=settings.beta2)


def optimizer_rules(config: ConfigDict, length: Steps) -> optim.Rules:
    """What the config says of rates, decay and the step from which each parameter moves."""
    settings, schedules = config.optimizer, optimizer_schedules(config, length)
    return optim.Rules(
        learning_rate=schedules.learning_rate,
        weight_decay=schedules.weight_decay,
        clip_grad=settings.clip_grad,
        decayed=functools.partial(_decayed, decay_bias=settings.decay_bias, decay_scale=settings.decay_scale),
        moves_from=_moves_from(config, length),
    )


def _decayed(path: str, dimensions: int, *, decay_bias: bool, decay_scale: bool) -> bool:
    """Decay tensors of two or more dimensions (cls token, position embedding and prototypes too), and biases and scales if asked to."""
    return optim.is_matrix(path, dimensions) or {"bias": decay_bias, "scale": decay_scale}.get(path.split("/")[-1], False)


def _moves_from(config: ConfigDict, length: Steps) -> Callable[[str], int]:
    """path -> the first step that moves the parameter, and `optim.NEVER` for fixed positions and a frozen patch embedding.

    Prototypes wait `freeze_last_layer_epochs`. The backbone waits `freeze_backbone_epochs`, so that gradients of untrained heads do
    not spoil imported weights.
    """
    settings, model = config.optimizer, config.model
    fixed_positions = model.name == "vit" and model.positions != "learned"
    fixed_patch_embed = model.name == "vit" and model.freeze_patch_embed
    backbone_from = settings.freeze_backbone_epochs * length.per_epoch
    prototypes_from = settings.freeze_last_layer_epochs * length.per_epoch

    def first_step(path: str) -> int:
        if (fixed_positions and path == "backbone/pos_embed") or (fixed_patch_embed and path.startswith("backbone/patch_embed/")):
            return optim.NEVER
        if path.startswith("backbone/"):
            return backbone_from
        return prototypes_from if "/last_layer/" in path else 0

    return first_step
