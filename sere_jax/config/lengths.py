"""Durations within a run, in epochs: warm-ups, freezing, and masking that starts later.

Some may last as long as the run. Others must end earlier, because something would never happen otherwise.
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
    """The durations that do not fit into a run of `total` steps, `per_epoch` to an epoch. Keys that the run never reads are left out."""
    if not total:  # the run trains nothing
        return []
    ignored = unread(values)
    return [
        duration
        for duration in DURATIONS
        if duration.key not in ignored
        and (values[duration.key] * per_epoch > total or (duration.never and values[duration.key] * per_epoch >= total))
        and values[duration.key]
    ]


def in_epochs(values: Mapping[str, Any], but: Collection[str] = ()) -> list[str]:
    """The mistakes of a run whose length is given in epochs, known before its data is open; none on the keys in `but`."""
    epochs = values["schedule.epochs"]
    if values["schedule.total_steps"]:
        return []
    return [
        f"{key}: found {values[key]}, expected {_most(never)} schedule.epochs = {epochs}{never and f': {never}'}"
        for key, never in too_long(values, per_epoch=1, total=epochs)
        if key not in but
    ]


def length_mistakes(config: ConfigDict, *, per_epoch: int, total: int) -> list[str]:
    """The mistakes of a run of `total` steps, `per_epoch` to an epoch. They are known once its data is open."""
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


def shorten(config: ConfigDict, share: float, *, per_epoch: int, total: int, keys: Collection[str] = DURATION_KEYS) -> list[str]:
    """Multiply durations by `share` so that they fit into `total` steps, `per_epoch` to an epoch; return a line for each that changed.

    Durations are whole epochs. One above 0 gets at least one epoch, unless even that does not fit. Keys that the run never reads are
    left out, and those that nothing reads any more get their defaults.
    """
    values, lines = flatten(config), []
    ignored = unread(values)
    for key, never in DURATIONS:
        if key not in keys or key in ignored or not values[key]:
            continue
        longest = (total - 1 if never else total) // per_epoch
        shorter = min(max(1, round(values[key] * share)), longest)
        if shorter != values[key]:
            config.update_from_flattened_dict({key: shorter})
            why = "its share of the shorter run" if shorter else "because the run is too short for one epoch of it"
            lines.append(f"{key}: {values[key]} -> {shorter}, {why}")
    reset(config, ignored)
    return lines
