"""What JSON files beside weights state about the network and its images, checked against what this project's networks compute."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from sere_jax.buckets import Location
from sere_jax.interop.files import FileError
from sere_jax.interop.tables import InteropError, matches

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"

# A rule of a key: the values with which the network computes what ours does. Without any, the key may have every value.
Rules = Mapping[str, tuple[Any, ...]]


class Stated(NamedTuple):
    """What a `config.json` states that the tensors do not show, and lines on what was assumed."""

    heads: int  # 0: not stated
    norm_eps: float
    notes: tuple[str, ...] = ()


class Preparation(NamedTuple):
    """How images are prepared, and the differences from what the JSON file asks for, as lines."""

    size: int  # pixels of the square
    resize: int  # pixels of the shorter side before the centre crop
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notes: tuple[str, ...] = ()


def read_json(path: Location) -> dict[str, Any]:
    """The content of a JSON file, {} where there is none. Raises FileError where it is damaged or no dictionary."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FileError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise FileError(f"{path}: found {type(content).__name__}, expected a dictionary")
    return content


def misfits(settings: Mapping[str, Any], rules: Rules, harmless: Iterable[str] = ()) -> list[str]:
    """Lines on settings with which a network computes something else, or might: those that neither rules nor patterns know.

    A setting that is null has its default, which is ours.
    """
    lines = []
    for key, value in settings.items():
        if value is None or (key in rules and not rules[key]) or matches(key, harmless):
            continue
        if key not in rules:
            lines.append(f"{key}: found {shown(value)}, which this project's network does not know; remove a key that changes nothing")
        elif not any(same(value, expected) for expected in rules[key]):
            lines.append(f"{key}: found {shown(value)}, expected {' or '.join(map(repr, rules[key]))}")
    return lines


def refuse(lines: Iterable[str]) -> None:
    """Raise InteropError with the lines of `misfits`, if there are any."""
    if lines := list(lines):
        raise InteropError(f"{CONFIG}: the network is another one than this project's:\n" + "\n".join(f"  {line}" for line in lines))


def same(value: Any, expected: Any) -> bool:
    """Whether two JSON values are equal; a boolean is no number."""
    return isinstance(value, bool) == isinstance(expected, bool) and bool(value == expected)


def shown(value: Any) -> str:
    """A JSON value as a short text."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def heads_of(key: str, value: Any, width: int) -> list[str]:
    """A line where a number of attention heads cannot be one; [] where it can, and for 0 or None (not stated)."""
    if value is None or (is_whole(value) and value >= 0 and (not value or width % value == 0)):
        return []
    return [f"{key}: found {shown(value)}, expected a divisor of the width {width}"]


def is_whole(value: Any) -> bool:
    """Whether a JSON value is a whole number; a boolean is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def side_of(value: Any, what: str) -> int:
    """A number of pixels. Raises ValueError where it is no whole number above 0."""
    if not is_whole(value) or value < 1:
        raise ValueError(f"{what}: found {shown(value)}, expected a whole number of pixels")
    return int(value)


def numbers_of(value: Any, channels: int, what: str) -> tuple[float, ...]:
    """Finite numbers, one for each channel; a single number serves all. Raises ValueError for anything else."""
    items = list(value) if isinstance(value, list | tuple) else [value] * channels
    if len(items) != channels or any(
        isinstance(item, bool) or not isinstance(item, int | float) or not math.isfinite(item) for item in items
    ):
        raise ValueError(f"{what}: found {shown(value)}, expected {channels} numbers")
    return tuple(map(float, items))
