"""From a config to its method: which losses, with which settings and weights. A part of `build`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ml_collections import ConfigDict

from sere_jax import schedules
from sere_jax.build_model import backbone
from sere_jax.objectives.dino import dino
from sere_jax.objectives.recipes import RECIPES, Recipe, combine
from sere_jax.objectives.relation import Temperatures, channel, spatial
from sere_jax.types import Objective


class Steps(NamedTuple):
    """The length of a run: an epoch is floor(examples / batch_size) steps, no example twice in it."""

    per_epoch: int
    total: int


def recipe(config: ConfigDict) -> Recipe:
    """The rules of the method that the config names."""
    return RECIPES[config.recipe]


def objective(config: ConfigDict, length: Steps) -> Objective:
    """The recipe's weighted sum of losses, its schedules laid out for a run of that length."""
    relation, chosen = config.relation, recipe(config)
    makers: dict[str, Callable[[], Objective]] = {
        "dino": lambda: dino(
            prototypes=config.head.prototypes,
            student_temp=config.dino.student_temp,
            teacher_temp=schedules.linear_by_epoch(
                config.dino.warmup_teacher_temp,
                config.dino.teacher_temp,
                epochs=config.dino.warmup_teacher_temp_epochs,
                steps_per_epoch=length.per_epoch,
            ),
            center_momentum=config.dino.center_momentum,
            local_count=config.views.local_count,
        ),
        "spatial": lambda: _spatial(config),
        "channel": lambda: channel(
            temperatures=_temperatures(config, relation.teacher_temp_channel),
            width=backbone(config).width,
            norm=relation.tokens,
            local_count=config.views.local_count,
            local_heads=relation.local_heads,
        ),
    }
    parts = {name: makers[name]() for name in chosen.losses}
    return combine(chosen, parts, alpha=relation.alpha, beta=relation.beta, image_weight=relation.image_weight)


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
    )


def _temperatures(config: ConfigDict, sharp: float) -> Temperatures:
    """`sharp` and the plain temperature on the sides that `temperature_side` says: the teacher (code), the student (TPAMI 4.1)."""
    plain = config.relation.student_temp
    return Temperatures(sharp, plain) if config.relation.temperature_side == "teacher" else Temperatures(plain, sharp)
