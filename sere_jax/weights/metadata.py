"""The metadata of a file of weights, which anybody may have written: whether they are of the kinds that this project's exports have."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from sere_jax.interop.stated import is_whole, shown
from sere_jax.interop.tables import InteropError
from sere_jax.interop.torch_file import ARGUMENTS, LEFT

_OURS = "layout"  # an entry that each of our exports has
_MOST_PIXELS = 1 << 14


class _Rule(NamedTuple):
    fits: Callable[[Any], bool]
    expected: str
    needed: bool = False  # where the dictionary around it is there


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(map(_is_number, value))


_PIXELS = _Rule(lambda value: is_whole(value) and 0 < value <= _MOST_PIXELS, f"1 to {_MOST_PIXELS:,} pixels", needed=True)
_DICTIONARY = _Rule(lambda value: isinstance(value, Mapping), "a dictionary")
_TEXT = _Rule(lambda value: isinstance(value, str), "a text")
_RULES: dict[str, _Rule] = {
    "network": _TEXT,
    "step": _Rule(lambda value: value is None or is_whole(value), "a whole number"),
    "config": _Rule(lambda value: value is None or isinstance(value, Mapping), "a dictionary"),
    "config/head": _DICTIONARY,
    "architecture": _DICTIONARY,
    "architecture/heads": _Rule(lambda value: is_whole(value) and value >= 0, "a whole number"),
    "architecture/norm_eps": _Rule(lambda value: _is_number(value) and 0 < value < 1, "a number from 0 to 1"),
    "architecture/image_size": _PIXELS._replace(needed=False),
    "preprocess": _DICTIONARY,
    "preprocess/size": _PIXELS,
    "preprocess/resize": _PIXELS,
    "preprocess/mean": _Rule(_are_numbers, "numbers", needed=True),
    "preprocess/std": _Rule(lambda value: _are_numbers(value) and min(value) > 0, "numbers above 0", needed=True),
    "preprocess/interpolation": _Rule(lambda value: value == "bicubic", "bicubic", needed=True),
    "preprocess/value_range": _Rule(lambda value: _are_numbers(value) and len(value) == 2, "two numbers"),
    ARGUMENTS: _DICTIONARY,
    LEFT: _Rule(lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value), "names"),
}


def checked(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata, where all entries that are read are of their kinds.

    Entries of other kinds in a file that no export of ours is belong to another program: then only what `torch_file` says of the file
    is kept. Raises InteropError with every wrong entry of an export.
    """
    lines = [line for path, rule in _RULES.items() if (line := _misfit(metadata, path, rule))]
    if not lines:
        return dict(metadata)
    if _OURS in metadata:
        raise InteropError("the metadata are not those of an export:\n" + "\n".join(f"  {line}" for line in lines))
    return {name: metadata[name] for name in (ARGUMENTS, LEFT) if name in metadata and _RULES[name].fits(metadata[name])}


def _misfit(metadata: Mapping[str, Any], path: str, rule: _Rule) -> str:
    parent, _, name = path.rpartition("/")
    entries = metadata.get(parent) if parent else metadata
    if not isinstance(entries, Mapping) or not entries or (name not in entries and not rule.needed):
        return ""
    return "" if name in entries and rule.fits(entries[name]) else f"{path}: found {shown(entries.get(name))}, expected {rule.expected}"
