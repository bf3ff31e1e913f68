"""AdamW with the rules of DINO, iBOT and SERE, as a chain of optax transformations.

Every transformation takes the global step as the extra argument `step`, so that a skipped step does not shift a schedule.
Where blocks are stacked by scan, a layer's slice counts as a tensor of its own: scan on and off give the same training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sere_jax.types import PyTree, Schedule

LAST_LAYER = "last_layer"  # the prototypes
_STACKED = "blocks"  # the parameter path of scanned blocks, whose leading axis is the layer


def adamw(
    *,
    learning_rate: Schedule,
    weight_decay: Schedule,
    clip_grad: float = 0.0,
    decay_bias: bool = False,
    freeze_last_layer_steps: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Per-tensor clipping, then AdamW (0.9, 0.999, epsilon 1e-8) with decoupled decay: p - lr (adam + wd p).

    Decayed are all tensors of two or more dimensions (cls token and position embedding included), and 1-D biases with
    `decay_bias`. In the first `freeze_last_layer_steps` the prototypes' gradient counts as absent: neither the values, nor the
    moments with their count, nor the decay move. Update with `optimizer.update(grads, state, params, step=step)`.
    """

    def rule() -> optax.GradientTransformationExtraArgs:
        return optax.chain(optax.scale_by_adam(), _decay_and_scale(learning_rate, weight_decay, decay_bias))

    def labels(params: PyTree) -> PyTree:
        return jax.tree_util.tree_map_with_path(lambda path, _: LAST_LAYER if LAST_LAYER in names(path) else "rest", params)

    inner = {"rest": rule(), LAST_LAYER: _delayed(rule(), freeze_last_layer_steps)}
    return optax.chain(clip_per_tensor(clip_grad), optax.partition(inner, labels))


def clip_per_tensor(limit: float) -> optax.GradientTransformation:
    """Scale each tensor's gradient by limit / (norm + 1e-6) where that is below 1; a limit of 0 clips nothing.

    Source: DINO's reference code. Not optax's global clip: a small tensor next to an exploding one keeps its gradient.
    """

    def clip(path: Any, gradient: jax.Array) -> jax.Array:
        axes = tuple(range(int(is_stacked(path)), gradient.ndim))
        norm = jnp.sqrt(jnp.sum(jnp.square(gradient), axis=axes, keepdims=True))
        return gradient * jnp.minimum(1.0, limit / (norm + 1e-6))

    def update(updates: PyTree, params: PyTree = None) -> PyTree:
        return jax.tree_util.tree_map_with_path(clip, updates) if limit else updates

    return optax.stateless(update)


def decays(path: Any, parameter: jax.Array, *, decay_bias: bool) -> bool:
    """Whether a parameter is decayed: two or more dimensions, or a bias under `decay_bias`; 1-D scales never are."""
    return parameter.ndim - int(is_stacked(path)) > 1 or (decay_bias and names(path)[-1] == "bias")


def is_stacked(path: Any) -> bool:
    """Whether a parameter path lies in scanned blocks and has the layer as its leading axis."""
    return _STACKED in names(path)


def names(path: Any) -> tuple[str, ...]:
    """The keys of a tree path as text."""
    return tuple(str(getattr(key, "key", getattr(key, "name", key))) for key in path)


def _decay_and_scale(learning_rate: Schedule, weight_decay: Schedule, decay_bias: bool) -> optax.GradientTransformationExtraArgs:
    def update(updates: PyTree, state: PyTree, params: PyTree = None, *, step: jax.Array, **_: Any) -> tuple[PyTree, PyTree]:
        rate, decay = learning_rate(step), weight_decay(step)

        def scale(path: Any, direction: jax.Array, parameter: jax.Array) -> jax.Array:
            wanted = decay * parameter if decays(path, parameter, decay_bias=decay_bias) else 0.0
            return -rate * (direction + wanted)

        return jax.tree_util.tree_map_with_path(scale, updates, params), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _delayed(inner: optax.GradientTransformationExtraArgs, steps: int) -> optax.GradientTransformationExtraArgs:
    """`inner` from step `steps` on; before that updates are zero and its state stands still, as if it had no gradient."""

    def update(updates: PyTree, state: PyTree, params: PyTree = None, *, step: jax.Array, **_: Any) -> tuple[PyTree, PyTree]:
        active = step >= steps
        new_updates, new_state = inner.update(updates, state, params, step=step)
        return (
            jax.tree.map(lambda u: jnp.where(active, u, 0.0), new_updates),
            jax.tree.map(lambda new, old: jnp.where(active, new, old), new_state, state),
        )

    return optax.GradientTransformationExtraArgs(inner.init, update)


def count(params: PyTree, predicate: Callable[[Any, jax.Array], bool]) -> int:
    """How many parameter tensors satisfy `predicate(path, parameter)`."""
    return sum(predicate(path, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params))
