"""Renaming between our parameter trees and other people's tensors, by tables of name, layout and shape.

Nothing is skipped silently. Missing, unused and misshapen names are all listed in one error.
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
    """Tensors or settings do not fit what was expected; the message lists every misfit."""


class Line(NamedTuple):
    """One parameter of a table. `shape` is the shape on our side; `layout` says how the axes are permuted on theirs.

    same: no permutation. linear: theirs is [out, in], ours [in, out]. conv: theirs is [out, in, h, w], ours [h, w, in, out].
    pointwise: theirs is a convolution [out, in, 1, 1], ours a matrix [in, out].
    """

    ours: str  # blocks_0/attn/qkv/kernel
    theirs: str  # blocks.0.attn.qkv.weight
    shape: tuple[int, ...]
    layout: Literal["same", "linear", "conv", "pointwise"] = "same"


_TO_THEIRS = {"linear": (1, 0), "pointwise": (1, 0), "conv": (3, 2, 0, 1)}
_TO_OURS = {"linear": (1, 0), "conv": (2, 3, 1, 0)}


def to_theirs(tree: Tree, lines: Sequence[Line], *, ignore: Iterable[str] = ()) -> dict[str, np.ndarray]:
    """Convert our tree to their tensors, C-contiguous. `ignore`: patterns of our paths that the table may lack.

    Raises InteropError as `to_ours` does.
    """
    named = flatten(tree)
    check(named, {line.ours: line.shape for line in lines}, ignore)
    return {line.theirs: _permuted(named[line.ours], _TO_THEIRS.get(line.layout)).reshape(_their_shape(line)) for line in lines}


def to_ours(tensors: Tensors, lines: Sequence[Line], *, ignore: Iterable[str] = ()) -> dict[str, Any]:
    """Convert their tensors to our tree. `ignore`: patterns (`head.*`) of their names that the table may lack.

    Raises InteropError with every missing, unused and misshapen name, each with the nearest name of the other side.
    """
    check(tensors, {line.theirs: _their_shape(line) for line in lines}, ignore)
    return nest({line.ours: _our_array(tensors[line.theirs], line) for line in lines})


def _our_array(tensor: np.ndarray, line: Line) -> np.ndarray:
    if line.layout == "pointwise":
        return _permuted(np.reshape(tensor, line.shape[::-1]), (1, 0))
    return _permuted(tensor, _TO_OURS.get(line.layout))


def _permuted(array: np.ndarray, axes: tuple[int, ...] | None) -> np.ndarray:
    array = np.asarray(array)
    return np.asarray(array if axes is None else array.transpose(axes), order="C")


def _their_shape(line: Line) -> tuple[int, ...]:
    axes = _TO_THEIRS.get(line.layout)
    shape = line.shape if axes is None else tuple(line.shape[axis] for axis in axes)
    return (*shape, 1, 1) if line.layout == "pointwise" else shape


def check(tensors: Tensors, expected: Mapping[str, tuple[int, ...]], ignore: Iterable[str] = ()) -> None:
    """Raise InteropError with every name that is missing, unexpected or of another shape.

    `ignore`: patterns of unexpected names that are allowed.
    """
    unused = [name for name in tensors if name not in expected and not matches(name, ignore)]
    missing = [name for name in expected if name not in tensors]
    mistakes = [f"missing  {name} {list(expected[name])}{_nearest(name, unused)}" for name in missing]
    mistakes += [f"unused   {name} {list(np.shape(tensors[name]))}{_nearest(name, missing)}" for name in unused]
    for name in expected.keys() & tensors.keys():
        if np.shape(tensors[name]) != expected[name]:
            mistakes.append(f"shape    {name}: found {list(np.shape(tensors[name]))}, expected {list(expected[name])}")
    if mistakes:
        raise InteropError(f"{len(mistakes)} names or shapes do not fit:\n" + "\n".join("  " + line for line in sorted(mistakes)))


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name matches one of the shell patterns, case included."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _nearest(name: str, others: Sequence[str]) -> str:
    # Another model altogether makes hundreds of misfits; comparing each with hundreds of names would take seconds.
    near = difflib.get_close_matches(name, others, n=1, cutoff=0.7) if len(others) <= 50 else []
    return f"; nearest: {near[0]}" if near else ""


def count_of(numbers: Iterable[str], most: int, what: str) -> int:
    """How many there are of parts that names number from 0, by the largest number.

    Raises InteropError where fewer than `most` parts cannot have it: a table of that many would fill the memory.
    """
    count = 0
    for number in numbers:
        if len(number) > len(str(most)) or int(number) >= most:
            raise InteropError(f"{what}: found the number {number[:20]}, expected one below {most}, the number of the tensors")
        count = max(count, int(number) + 1)
    return count


def flatten(tree: Tree) -> dict[str, np.ndarray]:
    """Flatten a nested dictionary of arrays to {"a/b": array}."""
    from flax.traverse_util import flatten_dict  # imports JAX, which the refusal of a file does not need

    return {path: np.asarray(leaf) for path, leaf in flatten_dict(tree, sep="/").items()}


def nest(named: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    from flax.traverse_util import unflatten_dict

    return unflatten_dict(named, sep="/")
