"""AdamW, SGD and LARS with the rules of DINO, iBOT, SERE, MoCo v3 and MAE, as chains of optax transformations.

Which parameters are decayed, at what rate they move and from which step on are three functions of a parameter's path, such as
`backbone/blocks_0/mlp/fc1/kernel`. No parameter has a special name here; `build.optimizer` makes the functions from a config.

Every transformation takes the global step as the extra argument `step`, so that a skipped step does not shift a schedule.
Where blocks are stacked by scan, each layer's slice counts as a tensor: scan on and off give the same training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from sere_jax.train.stacking import is_stacked
from sere_jax.types import PyTree, Schedule

NEVER = 2**31 - 1  # what `moves_from` says of a frozen parameter; no run is that long


def is_matrix(path: str, dimensions: int) -> bool:
    """Whether a tensor has two or more dimensions: kernels and embeddings, but no biases and scales of normalisation layers."""
    return dimensions > 1


def same_rate(path: str) -> float:
    """A factor of 1: the parameter moves at the schedule's rate."""
    return 1.0


def at_once(path: str) -> int:
    """Step 0: the parameter moves from the start."""
    return 0


class Rules(NamedTuple):
    """The settings that all optimizers here share.

    `decayed(path, dimensions)` says whether a parameter is decayed; the layer axis of stacked blocks is not among the dimensions.
    `factor(path)` multiplies its rate, for example in layer-wise decay. For stacked blocks it may be a vector, one factor a layer.
    `moves_from(path)` is the first step that moves it. Before that step its gradient counts as absent: value, moments, their count
    and decay stand still. A parameter that moves from `NEVER` has no moments.

    A `learning_rate` that returns a vector gives each slice along the leading axis a rate of its own. Stacked heads can then be
    trained at many rates at once.
    """

    learning_rate: Schedule
    weight_decay: Schedule
    clip_grad: float = 0.0
    decayed: Callable[[str, int], bool] = is_matrix
    factor: Callable[[str], ArrayLike] = same_rate
    moves_from: Callable[[str], int] = at_once


def adamw(rules: Rules, *, beta2: float = 0.999) -> optax.GradientTransformationExtraArgs:
    """Per-tensor clipping, then AdamW (0.9, `beta2`, epsilon 1e-8) with decoupled decay: p - lr (adam + wd p).

    Update with `optimizer.update(gradients, state, params, step=step)`. Here only the bias moves in the first step:

    >>> rules = Rules(lambda step: 0.1, lambda step: 0.0, moves_from=lambda path: 0 if path.endswith("bias") else 1)
    >>> params = {"fc": {"kernel": jnp.ones((2, 2)), "bias": jnp.zeros(2)}}
    >>> optimizer = adamw(rules)
    >>> updates, _ = optimizer.update(params, optimizer.init(params), params, step=jnp.int32(0))
    >>> float(jnp.max(jnp.abs(updates["fc"]["kernel"])))
    0.0
    """
    return _optimizer(rules, lambda: optax.chain(optax.scale_by_adam(b2=beta2), _add_decay(rules), _scale(rules)))


def sgd(rules: Rules, *, momentum: float = 0.9) -> optax.GradientTransformationExtraArgs:
    """Per-tensor clipping, then PyTorch's SGD: m <- momentum m + (g + wd p), p - lr m. DINO's recipe for ResNets."""
    return _optimizer(rules, lambda: optax.chain(_add_decay(rules), optax.trace(momentum), _scale(rules)))


def lars(rules: Rules, *, momentum: float = 0.9, trust_coefficient: float = 1e-3) -> optax.GradientTransformationExtraArgs:
    """LARS as MoCo v3 runs it: u = g + wd p, times trust |p| / |u| for tensors of two or more dimensions; m <- momentum m + u, p - lr m.

    `optax.lars` multiplies by the rate before the momentum, which is another rule while the rate changes.
    """
    trust = trust_ratio(trust_coefficient)
    return _optimizer(rules, lambda: optax.chain(_add_decay(rules), trust, optax.trace(momentum), _scale(rules)))


def trust_ratio(coefficient: float) -> optax.GradientTransformation:
    """Scale each update u of a tensor p of two or more dimensions by coefficient |p| / |u|; by 1 where either norm is 0.

    Source: You et al. 2017, LARS, as in MoCo v3. Stacked blocks are scaled layer by layer, which optax's would not do.
    """

    def scale(path: str, update: jax.Array, parameter: jax.Array) -> jax.Array:
        if _dimensions(path, parameter) < 2:
            return update
        size, length = _norm(path, parameter), _norm(path, update)
        both = (size > 0) & (length > 0)
        return update * jnp.where(both, coefficient * size / jnp.where(both, length, 1.0), 1.0)

    def update(updates: PyTree, params: PyTree = None) -> PyTree:
        return _map_with_path(scale, updates, params)

    return optax.stateless(update)


def _optimizer(rules: Rules, rule: Callable[[], optax.GradientTransformation]) -> optax.GradientTransformationExtraArgs:
    """`rule` after clipping. Parameters that start at different steps have a rule each, since a rule's state counts its steps."""

    def groups(tree: PyTree) -> optax.GradientTransformationExtraArgs:
        starts = _map_with_path(lambda path, _: rules.moves_from(path), tree)
        # optax's `freeze` and `selective_transform` are this partition with one group that never moves.
        transformations = {_label(start): _delayed(rule(), start) for start in sorted(set(jax.tree.leaves(starts)))}
        return optax.partition(transformations, jax.tree.map(_label, starts))

    def update(updates: PyTree, state: PyTree, params: PyTree = None, *, step: jax.Array, **_: Any) -> tuple[PyTree, PyTree]:
        return groups(updates).update(updates, state, params, step=step)

    by_start = optax.GradientTransformationExtraArgs(lambda params: groups(params).init(params), update)
    return optax.chain(clip_per_tensor(rules.clip_grad), by_start)


def _label(start: int) -> str:
    """The name of a group of parameters in the optimizer's state."""
    return "never" if start == NEVER else f"from_step_{start}"


def _delayed(rule: optax.GradientTransformation, start: int) -> optax.GradientTransformation:
    """`rule` from step `start` on. Before that, updates are zero and the rule's state stands still, as if there were no gradient."""
    if start == NEVER:
        return optax.set_to_zero()
    if start == 0:
        return rule
    inner = optax.with_extra_args_support(rule)

    # A select joins the update's elementwise kernel. optax's `conditionally_mask` branches by `lax.cond`, and keeps a counter of its own.
    def update(updates: PyTree, state: PyTree, params: PyTree = None, *, step: jax.Array, **_: Any) -> tuple[PyTree, PyTree]:
        active = step >= start
        new_updates, new_state = inner.update(updates, state, params, step=step)
        return (
            jax.tree.map(lambda u: jnp.where(active, u, 0.0), new_updates),
            jax.tree.map(lambda new, old: jnp.where(active, new, old), new_state, state),
        )

    return optax.GradientTransformationExtraArgs(inner.init, update)


def stop_gradients(params: PyTree, moves_from: Callable[[str], int]) -> PyTree:
    """The same parameters; no gradient reaches those that never move."""
    return _map_with_path(lambda path, x: jax.lax.stop_gradient(x) if moves_from(path) == NEVER else x, params)


def clip_per_tensor(limit: float) -> optax.GradientTransformation:
    """Scale each tensor's gradient by limit / (norm + 1e-6) where that is below 1; a limit of 0 clips nothing.

    Source: DINO's reference code. Unlike optax's `clip_by_global_norm`, it leaves a small tensor alone when another
    explodes, and it clips stacked blocks layer by layer.
    """

    def clip(path: str, gradient: jax.Array) -> jax.Array:
        return gradient * jnp.minimum(1.0, limit / (_norm(path, gradient) + 1e-6))

    def update(updates: PyTree, params: PyTree = None) -> PyTree:
        return _map_with_path(clip, updates) if limit else updates

    return optax.stateless(update)


def _map_with_path(function: Callable[..., Any], tree: PyTree, *rest: PyTree) -> PyTree:
    """Map function(path, leaf, ...) over trees, with paths such as `backbone/norm/bias`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(jax.tree_util.keystr(path, simple=True, separator="/"), *leaves), tree, *rest
    )


def _dimensions(path: str, x: jax.Array) -> int:
    """The number of axes, the layer axis of stacked blocks not counted."""
    return x.ndim - int(is_stacked(path))


def _norm(path: str, x: jax.Array) -> jax.Array:
    """The Euclidean norm of a tensor, or of each layer's slice of a stacked one; broadcasts against it."""
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=tuple(range(int(is_stacked(path)), x.ndim)), keepdims=True))


def _add_decay(rules: Rules) -> optax.GradientTransformationExtraArgs:
    """u + wd p for the parameters that are decayed."""

    def update(updates: PyTree, state: PyTree, params: PyTree = None, *, step: jax.Array, **_: Any) -> tuple[PyTree, PyTree]:
        decay = rules.weight_decay(step)

        def add(path: str, direction: jax.Array, parameter: jax.Array) -> jax.Array:
            return direction + decay * parameter if rules.decayed(path, _dimensions(path, parameter)) else direction

        return _map_with_path(add, updates, params), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _scale(rules: Rules) -> optax.GradientTransformationExtraArgs:
    """-lr factor u, with the factor of the parameter's path."""

    def update(updates: PyTree, state: PyTree, params: PyTree = None, *, step: jax.Array, **_: Any) -> tuple[PyTree, PyTree]:
        rate = jnp.asarray(rules.learning_rate(step))

        def scaled(path: str, direction: jax.Array) -> jax.Array:
            return -_along_first_axis(rate, direction) * _along_first_axis(rules.factor(path), direction) * direction

        return _map_with_path(scaled, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _along_first_axis(values: ArrayLike, x: jax.Array) -> jax.Array:
    """A scalar unchanged; a vector [n] as [n, 1, ...], to match the n slices of x. Raises ValueError where x does not have n slices."""
    values = jnp.asarray(values)
    if values.ndim == 0:
        return values
    if values.shape != x.shape[:1]:
        raise ValueError(f"rates or factors: found shape {values.shape} for a parameter of shape {x.shape}, expected {x.shape[:1]}")
    return values.reshape(-1, *(1,) * (x.ndim - 1))
