"""Everything that training changes, in one tuple of trees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
from jaxtyping import Int

from sere_jax.types import PyTree


class TrainState(NamedTuple):
    """The whole state of a run: with the config and the data it determines everything that follows. No random key is in it."""

    step: Int[jax.Array, ""]  # steps taken, skipped ones included; also the position in the data
    params: PyTree  # the student
    batch_stats: PyTree  # running statistics of the student's BatchNorms
    teacher: PyTree  # moving average of params, of those that it holds; {} in a method without a teacher
    teacher_batch_stats: PyTree  # the teacher's own, from its own batches; not averaged
    opt_state: PyTree
    objective: PyTree  # the method's state, such as DINO's center
    bad_steps: Int[jax.Array, ""]  # steps skipped for a non-finite loss or gradient


def without(tree: PyTree, prefixes: tuple[str, ...], path: str = "") -> PyTree:
    """A tree of nested dicts less the branches whose paths (`heads_mocov3/predictor`) are among `prefixes`."""
    if not isinstance(tree, Mapping):
        return tree
    return {key: without(value, prefixes, f"{path}{key}/") for key, value in tree.items() if path + key not in prefixes}
