"""The kind of a metric (loss, accuracy, entropy ...) decides its colour."""

from __future__ import annotations

import math
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple


class Kind(NamedTuple):
    """A group of metrics that are interpreted alike."""

    name: str
    metrics: tuple[str, ...]  # names, with * for any text
    colour: str  # a name that rich and matplotlib both know
    better: Literal["below", "above", "between", "neither"]  # than the value of a network that has learned nothing


# The first kind whose pattern matches a name is used.
KINDS = (
    Kind("accuracy", ("*accuracy", "*/top1", "*/top5", "*/miou", "*/macc"), "green", "above"),
    # At the reference all prototypes are equally likely; at 0 a single prototype is used. Both are collapses.
    Kind("entropy", ("*entropy",), "magenta", "between"),
    Kind("fault", ("bad_steps", "bad_step", "data/replaced", "collapse"), "red", "neither"),
    Kind("rank", ("rank/*",), "magenta", "neither"),
    Kind("norm", ("*norm",), "blue", "neither"),
    Kind("share", ("*_share",), "blue", "neither"),
    Kind("schedule", ("learning_rate", "weight_decay", "ema_momentum"), "yellow", "neither"),
    Kind("speed", ("speed/*", "memory/*"), "white", "neither"),
    Kind("loss", ("loss", "dino", "patch", "patch_masked", "aligned", "spatial*", "channel*", "batch", "mocov3", "mae"), "cyan", "below"),
)
UNKNOWN = Kind("unknown", ("*",), "white", "neither")
_COLLAPSED = 0.01  # share of the reference within which an entropy counts as 0, or as the reference


def kind_of(metric: str) -> Kind:
    """The kind of a metric by its name.

    >>> kind_of("knn/k20/top1").name, kind_of("teacher_entropy").name, kind_of("spatial_local").name, kind_of("x").name
    ('accuracy', 'entropy', 'loss', 'unknown')
    """
    return next((kind for kind in KINDS if any(fnmatchcase(metric, pattern) for pattern in kind.metrics)), UNKNOWN)


def verdict_colour(metric: str, value: float, reference: float) -> str:
    """Green if a value is better than that of a network that has learned nothing, yellow if not, red if it is not finite.

    >>> verdict_colour("dino", 6.0, 6.2), verdict_colour("mocov3_accuracy", 0.3, 0.1), verdict_colour("teacher_entropy", 6.2, 6.2)
    ('green', 'green', 'yellow')
    """
    if not math.isfinite(value):
        return "red"
    better = {
        "below": value < reference,
        "above": value > reference,
        "between": _COLLAPSED * reference < value < (1 - _COLLAPSED) * reference,
    }
    direction = kind_of(metric).better
    return "white" if direction == "neither" else "green" if better[direction] else "yellow"
