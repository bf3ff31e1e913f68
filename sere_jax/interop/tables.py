"""Renaming between our parameter trees and other people's tensors, by tables that say name, layout and shape of each.

NumPy only. Nothing is skipped in silence: what a table asks for and is not there, what is there and no table asks for,
and what has another shape is told all at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple

import numpy as np

Tensors = Mapping[str, np.ndarray]
Tree = Mapping[str, Any]


class InteropError(ValueError):
    """Tensors do not fit the names or shapes that were expected; the message lists every one."""


class Line(NamedTuple):
    """One parameter. `shape` is ours; `layout` says how theirs lies: the same, linear [out, in] for our [in, out], a
    convolution [out, in, h, w] for our [h, w, in, out], or pointwise: a convolution [out, in, 1, 1] for our matrix [in, out]."""

    ours: str  # blocks_0/attn/qkv/kernel
    theirs: str  # blocks.0.attn.qkv.weight
    shape: tuple[int, ...]
    layout: Literal["same", "linear", "conv", "pointwise"] = "same"


_TO_THEIRS = {"linear": (1, 0), "pointwise": (1, 0), "conv": (3, 2, 0, 1)}
_TO_OURS = {"linear": (1, 0), "conv": (2, 3, 1, 0)}


def to_theirs(tree: Tree, lines: Sequence[Line], *, ignore: Iterable[str] = ()) -> dict[str, np.ndarray]:
    """Our tree -> their tensors, contiguous. `ignore`: patterns of our paths that have no name over there.

    Raises InteropError as `to_ours` does.
    """
    named = flatten(tree)
    check(named, {line.ours: line.shape for line in lines}, ignore)
    return {line.theirs: _turned(named[line.ours], _TO_THEIRS.get(line.layout)).reshape(_their_shape(line)) for line in lines}


def to_ours(tensors: Tensors, lines: Sequence[Line], *, ignore: Iterable[str] = ()) -> dict[str, Any]:
    """Their tensors -> our tree. `ignore`: patterns (`head.*`) of their names that may be left over.

    Raises InteropError with every missing, unused and misshapen name, and for each the nearest of the other side.
    """
    expected = {line.theirs: _their_shape(line) for line in lines}
    check(tensors, expected, ignore)
    return nest({line.ours: _ours(tensors[line.theirs], line) for line in lines})


def _ours(tensor: np.ndarray, line: Line) -> np.ndarray:
    if line.layout == "pointwise":
        return _turned(np.reshape(tensor, line.shape[::-1]), (1, 0))
    return _turned(tensor, _TO_OURS.get(line.layout))


def _turned(array: np.ndarray, axes: tuple[int, ...] | None) -> np.ndarray:
    array = np.asarray(array)
    return np.asarray(array if axes is None else array.transpose(axes), order="C")


def _their_shape(line: Line) -> tuple[int, ...]:
    axes = _TO_THEIRS.get(line.layout)
    shape = line.shape if axes is None else tuple(line.shape[axis] for axis in axes)
    return (*shape, 1, 1) if line.layout == "pointwise" else shape


def check(found: Tensors, expected: Mapping[str, tuple[int, ...]], ignore: Iterable[str] = ()) -> None:
    """Raise InteropError with every name that is missing, not expected or of another shape. `ignore`: patterns of what may be over."""
    unused = [name for name in found if name not in expected and not any(fnmatchcase(name, pattern) for pattern in ignore)]
    missing = [name for name in expected if name not in found]
    mistakes = [f"missing  {name} {list(expected[name])}{_nearest(name, unused)}" for name in missing]
    mistakes += [f"unused   {name} {list(np.shape(found[name]))}{_nearest(name, missing)}" for name in unused]
    for name in expected.keys() & found.keys():
        if np.shape(found[name]) != expected[name]:
            mistakes.append(f"shape    {name}: found {list(np.shape(found[name]))}, expected {list(expected[name])}")
    if mistakes:
        raise InteropError(f"{len(mistakes)} names or shapes do not fit:\n" + "\n".join("  " + line for line in sorted(mistakes)))


def _nearest(name: str, others: Sequence[str]) -> str:
    # Hundreds of misfits (another model altogether) would make hundreds of searches among hundreds of names.
    near = difflib.get_close_matches(name, others, n=1, cutoff=0.7) if len(others) <= 50 else []
    return f"; nearest: {near[0]}" if near else ""


def flatten(tree: Tree, prefix: str = "") -> dict[str, np.ndarray]:
    """Nested dict -> {"a/b": array}."""
    flat: dict[str, np.ndarray] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}/") if isinstance(value, Mapping) else {prefix + key: np.asarray(value)}
    return flat


def nest(named: Mapping[str, Any]) -> dict[str, Any]:
    """{"a/b": array} -> nested dict."""
    tree: dict[str, Any] = {}
    for name, value in named.items():
        *parents, last = name.split("/")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[last] = value
    return tree
