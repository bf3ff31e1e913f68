"""From a config to its method: which losses, with which settings and weights. A part of `build`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ml_collections import ConfigDict

from sere_jax.train import schedules
from sere_jax.build.model import backbone
from sere_jax.objectives.barlow import batch_relation
from sere_jax.objectives.dino import dino
from sere_jax.objectives.mae import mae
from sere_jax.objectives.mocov3 import mocov3
from sere_jax.objectives.patch import aligned, patch
from sere_jax.objectives.base import combine
from sere_jax.objectives.recipes import RECIPES, Recipe
from sere_jax.objectives.relation import Temperatures, channel, spatial
from sere_jax.types import Objective, Schedule


class Steps(NamedTuple):
    """The length of a run: an epoch is floor(examples / batch_size) steps, no example twice in it."""

    per_epoch: int
    total: int


def recipe(config: ConfigDict) -> Recipe:
    """The rules of the method that the config names."""
    return RECIPES[config.recipe]


def objective(config: ConfigDict, length: Steps) -> Objective:
    """The recipe's weighted sum of losses, its schedules laid out for a run of that length."""
    relation, chosen, width = config.relation, recipe(config), backbone(config).width
    makers: dict[str, Callable[[], Objective]] = {
        "dino": lambda: dino(
            prototypes=config.head.prototypes,
            student_temp=config.dino.student_temp,
            teacher_temp=_teacher_temp(config, length, config.dino.warmup_teacher_temp, config.dino.teacher_temp),
            center_momentum=config.dino.center_momentum,
            local_count=config.views.local_count,
        ),
        "patch": lambda: _patch(config, length, patch),
        "aligned": lambda: _patch(config, length, aligned),
        "mocov3": lambda: mocov3(
            temperature=config.mocov3.temperature, batch_size=config.data.batch_size // config.optimizer.accumulate_steps
        ),
        "mae": lambda: mae(patch_size=config.model.patch_size, normalise_pixels=config.mae.normalise_pixels),
        "spatial": lambda: _spatial(config),
        "channel": lambda: channel(
            temperatures=_temperatures(config, relation.teacher_temp_channel),
            width=width,
            norm=relation.tokens,
            local_count=config.views.local_count,
            local_heads=relation.local_heads,
            student_tokens=relation.student_tokens,
        ),
        "batch": lambda: batch_relation(
            tokens=config.barlow.embedding,
            norm=relation.tokens,
            off_diagonal=config.barlow.off_diagonal,
            width=config.barlow.projector_width if config.barlow.projector == "mlp" else width,
        ),
    }
    parts = {name: makers[name]() for name in chosen.losses}
    weights = {"patch": config.patch.patch_weight, "aligned": config.patch.patch_weight, "batch": config.barlow.barlow_weight}
    return combine(chosen, parts, alpha=relation.alpha, beta=relation.beta, image_weight=relation.image_weight, weights=weights)


def _teacher_temp(config: ConfigDict, length: Steps, start: float, end: float) -> Schedule:
    return schedules.linear_by_epoch(start, end, epochs=config.dino.warmup_teacher_temp_epochs, steps_per_epoch=length.per_epoch)


def _patch(config: ConfigDict, length: Steps, make: Callable[..., Objective]) -> Objective:
    settings = config.patch
    return make(
        prototypes=config.head.prototypes,
        student_temp=config.dino.student_temp,
        teacher_temp=_teacher_temp(config, length, settings.warmup_teacher_patch_temp, settings.teacher_patch_temp),
        center_momentum=settings.patch_center_momentum,
    )


def _spatial(config: ConfigDict) -> Objective:
    relation = config.relation
    return spatial(
        temperatures=_temperatures(config, relation.teacher_temp_spatial),
        heads=relation.heads or backbone(config).heads,
        scale=relation.scale,
        sampling=relation.sampling,
        padding=relation.padding,
        sampling_impl=relation.sampling_impl,
        disjoint=relation.disjoint,
        global_points=relation.global_points,
        local_points=relation.local_points,
        norm=relation.tokens,
        local_count=config.views.local_count,
        local_heads=relation.local_heads,
        student_tokens=relation.student_tokens,
    )


def _temperatures(config: ConfigDict, sharp: float) -> Temperatures:
    """`sharp` and the plain temperature on the sides that `temperature_side` says: the teacher (code), the student (TPAMI 4.1)."""
    plain = config.relation.student_temp
    return Temperatures(sharp, plain) if config.relation.temperature_side == "teacher" else Temperatures(plain, sharp)
