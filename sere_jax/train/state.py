"""Everything that training changes, in one tuple of trees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
from jaxtyping import Int

from sere_jax.types import PyTree


class State(NamedTuple):
    """The whole state of a run: with the config and the data it determines everything that follows. It holds no random key.

    Pre-training and trained evaluations use the same tuple; they differ in `method`.
    """

    step: Int[jax.Array, ""]  # steps taken, skipped ones included; also the position in the data
    params: PyTree  # the parameters that gradients move: the student's, or an evaluation's
    batch_stats: PyTree  # running statistics of their BatchNorms
    opt_state: PyTree
    bad_steps: Int[jax.Array, ""]  # steps skipped because something was not finite
    method: PyTree  # {} in an evaluation, `PretrainMethod` in pre-training


class PretrainMethod(NamedTuple):
    """The part of the state that only pre-training has."""

    teacher: PyTree  # moving average of those student parameters that the teacher has; {} in a method without a teacher
    teacher_batch_stats: PyTree  # running statistics of the teacher's own batches; not averaged
    objective: PyTree  # the objective's state, such as DINO's center


def without(tree: PyTree, prefixes: tuple[str, ...], path: str = "") -> PyTree:
    """Drop from a tree of nested dicts the branches whose paths (`heads_mocov3/predictor`) are among `prefixes`."""
    if not isinstance(tree, Mapping):
        return tree
    return {key: without(value, prefixes, f"{path}{key}/") for key, value in tree.items() if path + key not in prefixes}
