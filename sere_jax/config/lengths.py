"""Durations within a run: warm-ups, freezing, and masking that starts later; all are in epochs.

Some may last as long as the run. Others must end before it, else something would never happen.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from sere_jax.config.names import flatten
from sere_jax.config.unread import reset, unread


class Duration(NamedTuple):
    """A key in epochs. `never` says what would never happen if it lasted as long as the run; '' where it may."""

    key: str
    never: str = ""


DURATIONS = (
    Duration("optimizer.warmup_epochs"),
    Duration("dino.warmup_teacher_temp_epochs"),
    Duration("optimizer.freeze_last_layer_epochs", "the prototypes would never move"),
    Duration("optimizer.freeze_backbone_epochs", "the backbone would never move"),
    Duration("masking.start_epoch", "nothing would ever be masked"),
)
DURATION_KEYS = tuple(duration.key for duration in DURATIONS)


def too_long(values: Mapping[str, Any], *, per_epoch: int, total: int) -> list[Duration]:
    """The durations that do not fit into a run of `total` steps, `per_epoch` to an epoch. Those that the run never reads are left out."""
    if not total:  # nothing is trained
        return []
    ignored = unread(values)
    return [
        duration
        for duration in DURATIONS
        if duration.key not in ignored
        and (values[duration.key] * per_epoch > total or (duration.never and values[duration.key] * per_epoch >= total))
        and values[duration.key]
    ]


def in_epochs(values: Mapping[str, Any]) -> list[str]:
    """The mistakes of a run whose length is given in epochs, before its data is open."""
    epochs = values["schedule.epochs"]
    if values["schedule.total_steps"]:
        return []
    return [
        f"{key}: found {values[key]}, expected {_most(never)} schedule.epochs = {epochs}{never and f': {never}'}"
        for key, never in too_long(values, per_epoch=1, total=epochs)
    ]


def length_mistakes(config: ConfigDict, *, per_epoch: int, total: int) -> list[str]:
    """The mistakes of a run of `total` steps, `per_epoch` to an epoch: known once its data is open."""
    values = flatten(config)
    lines = [
        f"{key}: found {values[key]} ({values[key] * per_epoch} steps), expected {_most(never)} the {total} steps of the run"
        f"{never and f': {never}'}"
        for key, never in too_long(values, per_epoch=per_epoch, total=total)
    ]
    keep = values["run.keep_every_steps"]
    if total and keep > total:
        lines.append(
            f"run.keep_every_steps: found {keep}, expected at most the {total} steps of the run: no checkpoint would be kept for it"
        )
    return lines


def _most(never: str) -> str:
    return "less than" if never else "at most"


def shorten(config: ConfigDict, share: float, keys: Collection[str] = DURATION_KEYS) -> list[str]:
    """Give these durations that share of their length, in whole epochs, and return a line for each that changed.

    Those that the run never reads stay as they are, and what nothing reads without them goes back to its default.
    """
    values, lines = flatten(config), []
    ignored = unread(values)
    for key in keys:
        if key in ignored:
            continue
        shorter = round(values[key] * share)
        if shorter != values[key]:
            config.update_from_flattened_dict({key: shorter})
            lines.append(f"{key}: {values[key]} -> {shorter}, its share of the shorter run")
    reset(config, ignored)
    return lines


def fitted(config: ConfigDict, *, per_epoch: int, total: int, said: Collection[str]) -> list[str]:
    """Shorten the durations that do not fit into a run whose `schedule.total_steps` the launch gave; a line for each.

    `said` are the keys that the launch gave: a duration among them is left, and `length_mistakes` refuses it. The share is
    that of `total` in `schedule.epochs`, the length of the run before the launch.
    """
    epochs = config.schedule.epochs
    if "schedule.total_steps" not in said or not total:
        return []
    keys = [duration.key for duration in too_long(flatten(config), per_epoch=per_epoch, total=total) if duration.key not in said]
    return shorten(config, total / (epochs * per_epoch) if epochs else 0.0, keys)
