"""From a config to its method: losses, their settings and their weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ml_collections import ConfigDict

from sere_jax.build.model import backbone
from sere_jax.objectives import barlow, dino, mae, mocov3, patch, relation
from sere_jax.objectives.base import combine
from sere_jax.objectives.recipes import RECIPES, Recipe
from sere_jax.objectives.relation import Temperatures
from sere_jax.train import schedules
from sere_jax.types import Objective, Request, Schedule


class Steps(NamedTuple):
    """The length of a run: an epoch is floor(examples / batch_size) steps, no example twice in it."""

    per_epoch: int
    total: int


def recipe(config: ConfigDict) -> Recipe:
    """The rules of the method that the config names."""
    return RECIPES[config.recipe]


def requests(config: ConfigDict) -> tuple[Request, ...]:
    """The requests of the recipe's losses, the same as `objective` has; they do not depend on the length of a run."""
    asked = {
        "dino": lambda: dino.requests(local_count=config.views.local_count),
        "patch": lambda: patch.PATCH_REQUESTS,
        "aligned": lambda: patch.ALIGNED_REQUESTS,
        "mocov3": lambda: mocov3.REQUESTS,
        "mae": lambda: mae.REQUESTS,
        "spatial": lambda: _relation_requests(config, "spatial"),
        "channel": lambda: _relation_requests(config, "channel"),
        "batch": lambda: barlow.requests(tokens=config.barlow.embedding, norm=config.relation.tokens),
    }
    return tuple(dict.fromkeys(request for loss in recipe(config).losses for request in asked[loss]()))


def objective(config: ConfigDict, length: Steps) -> Objective:
    """The recipe's weighted sum of losses, with schedules for a run of this length."""
    makers: dict[str, Callable[[], Objective]] = {
        "dino": lambda: _dino(config, length),
        "patch": lambda: _patch(config, length, patch.patch, start_epoch=config.masking.start_epoch),
        "aligned": lambda: _patch(config, length, patch.aligned, start_epoch=0),
        "mocov3": lambda: mocov3.mocov3(
            temperature=config.mocov3.temperature, batch_size=config.data.batch_size // config.optimizer.accumulate_steps
        ),
        "mae": lambda: mae.mae(patch_size=config.model.patch_size, normalise_pixels=config.mae.normalise_pixels),
        "spatial": lambda: _spatial(config),
        "channel": lambda: _channel(config),
        "batch": lambda: _batch_relation(config),
    }
    rules = recipe(config)
    weights = {"patch": config.patch.patch_weight, "aligned": config.patch.patch_weight, "batch": config.barlow.barlow_weight}
    return combine(
        rules,
        {name: makers[name]() for name in rules.losses},
        alpha=config.relation.alpha,
        beta=config.relation.beta,
        image_weight=config.relation.image_weight,
        weights=weights,
    )


def _dino(config: ConfigDict, length: Steps) -> Objective:
    return dino.dino(
        prototypes=config.head.prototypes,
        student_temp=config.dino.student_temp,
        teacher_temp=_teacher_temp(config, length, config.dino.warmup_teacher_temp, config.dino.teacher_temp, start_epoch=0),
        center_momentum=config.dino.center_momentum,
        local_count=config.views.local_count,
    )


def _patch(config: ConfigDict, length: Steps, make: Callable[..., Objective], *, start_epoch: int) -> Objective:
    """A patch loss whose temperature warms up from `start_epoch` on: with the masking in iBOT (its reference code), at once in DINO+."""
    settings = config.patch
    temperatures = settings.warmup_teacher_patch_temp, settings.teacher_patch_temp
    return make(
        prototypes=config.head.prototypes,
        student_temp=config.dino.student_temp,
        teacher_temp=_teacher_temp(config, length, *temperatures, start_epoch=start_epoch),
        center_momentum=settings.patch_center_momentum,
    )


def _teacher_temp(config: ConfigDict, length: Steps, start: float, end: float, *, start_epoch: int) -> Schedule:
    epochs = config.dino.warmup_teacher_temp_epochs
    return schedules.linear_by_epoch(start, end, epochs=epochs, steps_per_epoch=length.per_epoch, start_epoch=start_epoch)


def _relation_requests(config: ConfigDict, head: str) -> tuple[Request, ...]:
    settings = config.relation
    return relation.relation_requests(
        head,
        norm=settings.tokens,
        local_count=config.views.local_count,
        local_heads=settings.local_heads,
        student_tokens=settings.student_tokens,
    )


def _spatial(config: ConfigDict) -> Objective:
    settings = config.relation
    spatial = relation.SpatialSettings(
        temperatures=_temperatures(config, settings.teacher_temp_spatial),
        heads=settings.heads or backbone(config).heads,
        scale=settings.scale,
        sampling=settings.sampling,
        padding=settings.padding,
        sampling_impl=settings.sampling_impl,
        disjoint=settings.disjoint,
        global_points=settings.global_points,
        local_points=settings.local_points,
    )
    return relation.spatial(spatial, _relation_requests(config, "spatial"), local_count=config.views.local_count)


def _channel(config: ConfigDict) -> Objective:
    temperatures = _temperatures(config, config.relation.teacher_temp_channel)
    requests = _relation_requests(config, "channel")
    return relation.channel(temperatures, requests, width=backbone(config).width, local_count=config.views.local_count)


def _temperatures(config: ConfigDict, sharp: float) -> Temperatures:
    """Give `sharp` to the side that `temperature_side` names: the teacher (authors' code) or the student (TPAMI 4.1)."""
    plain = config.relation.student_temp
    return Temperatures(sharp, plain) if config.relation.temperature_side == "teacher" else Temperatures(plain, sharp)


def _batch_relation(config: ConfigDict) -> Objective:
    settings = config.barlow
    return barlow.batch_relation(
        tokens=settings.embedding,
        norm=config.relation.tokens,
        off_diagonal=settings.off_diagonal,
        width=settings.projector_width if settings.projector == "mlp" else backbone(config).width,
    )
