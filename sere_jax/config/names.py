"""Keys of a config as paths `a.b`, and the nearest of several names. Imports nothing heavy: the command line is read with it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict


def flatten(config: Mapping[str, Any] | ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Nested config -> {"a.b": value}; lists, which JSON makes of tuples, become tuples."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = tuple(value) if isinstance(value, list) else value
    return flat


def unknown_key(key: str, known: Iterable[str]) -> str:
    """`unknown key`, with the nearest of the `known` ones: the first that ends so, else the whole path is compared, then its last part."""
    known = list(known)
    last = {path.rpartition(".")[2]: path for path in reversed(known)}
    near = [last[key]] if key in last else difflib.get_close_matches(key, known, n=1, cutoff=0.8)
    near = near or [last[part] for part in difflib.get_close_matches(key.rpartition(".")[2], last, n=1, cutoff=0.65)]
    return "unknown key" + (f"; nearest: {near[0]}" if near else "")


def multiples(value: int, step: int) -> str:
    """`; nearest: n` for the multiple of `step` next to `value`, at least `step`."""
    below, above = value // step * step, -(-value // step) * step
    return f"; nearest: {above if below == 0 or above - value < value - below else below}"


def divisors(value: int, whole: int) -> str:
    """`; nearest: n` for the divisor of `whole` next to `value`, of two as near the smaller."""
    found = min((n for n in range(1, whole + 1) if whole % n == 0), key=lambda n: abs(n - value))
    return f"; nearest: {found}"


def nearest(value: Any, choices: Iterable[str]) -> str:
    """`; nearest: x` for the choice most like `value`, or nothing."""
    near = difflib.get_close_matches(value, list(choices), n=1, cutoff=0.3) if isinstance(value, str) else []
    return f"; nearest: {near[0]}" if near else ""
