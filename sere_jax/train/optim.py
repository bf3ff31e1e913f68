"""AdamW, SGD and LARS with the rules of DINO, iBOT, SERE, MoCo v3 and MAE, as chains of optax transformations.

Every transformation takes the global step as the extra argument `step`, so that a skipped step does not shift a schedule.
Where blocks are stacked by scan, a layer's slice counts as a tensor of its own: scan on and off give the same training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from sere_jax.types import PyTree, Schedule

LAST_LAYER = "last_layer"  # the prototypes
BACKBONE = "backbone"
_STACKED = "blocks"  # the parameter path of scanned blocks, whose leading axis is the layer


class Rules(NamedTuple):
    """What all optimizers here share.

    `decay_bias` and `decay_scale` add 1-D biases and 1-D scales to the decayed parameters. In the first
    `freeze_last_layer_steps` the prototypes' gradient counts as absent: neither the values, nor the moments with their count, nor
    the decay move; in the first `freeze_backbone_steps` the backbone's, so that new heads find their place before they teach it.
    `frozen` holds prefixes of parameter paths (`backbone/pos_embed`) that never move and have no moments.
    `layer_factor` maps the names of a parameter path to a factor of its rate, such as layer-wise decay; for stacked blocks it may be a
    vector, one factor a layer. A `learning_rate` that returns a vector gives each slice along the leading axis its own rate, for heads
    that are stacked to be trained at many rates at once.
    """

    learning_rate: Schedule
    weight_decay: Schedule
    clip_grad: float = 0.0
    decay_bias: bool = False
    decay_scale: bool = False
    freeze_last_layer_steps: int = 0
    freeze_backbone_steps: int = 0
    frozen: tuple[str, ...] = ()
    layer_factor: Callable[[tuple[str, ...]], ArrayLike] | None = None


def adamw(rules: Rules, *, beta2: float = 0.999) -> optax.GradientTransformationExtraArgs:
    """Per-tensor clipping, then AdamW (0.9, `beta2`, epsilon 1e-8) with decoupled decay: p - lr (adam + wd p).

    Decayed are all tensors of two or more dimensions (cls token and position embedding included), and 1-D ones as `rules`
    say. Update with `optimizer.update(grads, state, params, step=step)`.
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

    def scale(path: Any, update: jax.Array, parameter: jax.Array) -> jax.Array:
        if not _is_matrix(path, parameter):
            return update
        size, length = _norm(path, parameter), _norm(path, update)
        both = (size > 0) & (length > 0)
        return update * jnp.where(both, coefficient * size / jnp.where(both, length, 1.0), 1.0)

    def update(updates: PyTree, params: PyTree = None) -> PyTree:
        return jax.tree_util.tree_map_with_path(scale, updates, params)

    return optax.stateless(update)


def _optimizer(
    rules: Rules, rule: Callable[[], optax.GradientTransformationExtraArgs | optax.GradientTransformation]
) -> optax.GradientTransformationExtraArgs:
    """`rule` after clipping, for the prototypes apart from the rest, and for nothing that is frozen."""

    def label(path: Any) -> str:
        if is_frozen(path, rules.frozen):
            return "frozen"
        if rules.freeze_backbone_steps and names(path)[0] == BACKBONE:
            return BACKBONE
        return LAST_LAYER if LAST_LAYER in names(path) else "rest"

    def labels(params: PyTree) -> PyTree:
        return jax.tree_util.tree_map_with_path(lambda path, _: label(path), params)

    inner = {
        "rest": optax.with_extra_args_support(rule()),
        LAST_LAYER: _delayed(optax.with_extra_args_support(rule()), rules.freeze_last_layer_steps),
        "frozen": optax.set_to_zero(),
    }
    if rules.freeze_backbone_steps:
        inner[BACKBONE] = _delayed(optax.with_extra_args_support(rule()), rules.freeze_backbone_steps)
    return optax.chain(clip_per_tensor(rules.clip_grad), optax.partition(inner, labels))


def is_frozen(path: Any, frozen: tuple[str, ...]) -> bool:
    """Whether a parameter path lies under one of the prefixes `frozen`, such as `backbone/patch_embed`."""
    name = "/".join(names(path)) + "/"
    return any(name.startswith(prefix + "/") for prefix in frozen)


def stop_frozen(params: PyTree, frozen: tuple[str, ...]) -> PyTree:
    """The same parameters, through which no gradient reaches what is frozen."""
    return jax.tree_util.tree_map_with_path(lambda path, x: jax.lax.stop_gradient(x) if is_frozen(path, frozen) else x, params)


def clip_per_tensor(limit: float) -> optax.GradientTransformation:
    """Scale each tensor's gradient by limit / (norm + 1e-6) where that is below 1; a limit of 0 clips nothing.

    Source: DINO's reference code. Not optax's global clip: a small tensor next to an exploding one keeps its gradient.
    """

    def clip(path: Any, gradient: jax.Array) -> jax.Array:
        return gradient * jnp.minimum(1.0, limit / (_norm(path, gradient) + 1e-6))

    def update(updates: PyTree, params: PyTree = None) -> PyTree:
        return jax.tree_util.tree_map_with_path(clip, updates) if limit else updates

    return optax.stateless(update)


def decays(path: Any, parameter: jax.Array, *, decay_bias: bool, decay_scale: bool = False) -> bool:
    """Whether a parameter is decayed: two or more dimensions, or a bias under `decay_bias`, or a scale under `decay_scale`."""
    return _is_matrix(path, parameter) or {"bias": decay_bias, "scale": decay_scale}.get(names(path)[-1], False)


def _is_matrix(path: Any, parameter: jax.Array) -> bool:
    """Two or more dimensions, the layer axis of stacked blocks not counted."""
    return parameter.ndim - int(is_stacked(path)) > 1


def _norm(path: Any, x: jax.Array) -> jax.Array:
    """The Euclidean norm of a tensor, or of each layer's slice of a stacked one; broadcasts against it."""
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=tuple(range(int(is_stacked(path)), x.ndim)), keepdims=True))


def is_stacked(path: Any) -> bool:
    """Whether a parameter path lies in scanned blocks and has the layer as its leading axis."""
    return _STACKED in names(path)


def names(path: Any) -> tuple[str, ...]:
    """The keys of a tree path as text."""
    return tuple(str(getattr(key, "key", getattr(key, "name", key))) for key in path)


def _add_decay(rules: Rules) -> optax.GradientTransformationExtraArgs:
    """u + wd p for the parameters that are decayed."""

    def update(updates: PyTree, state: PyTree, params: PyTree = None, *, step: jax.Array, **_: Any) -> tuple[PyTree, PyTree]:
        decay = rules.weight_decay(step)

        def add(path: Any, direction: jax.Array, parameter: jax.Array) -> jax.Array:
            wanted = decays(path, parameter, decay_bias=rules.decay_bias, decay_scale=rules.decay_scale)
            return direction + decay * parameter if wanted else direction

        return jax.tree_util.tree_map_with_path(add, updates, params), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _scale(rules: Rules) -> optax.GradientTransformationExtraArgs:
    """-lr factor u, with the factor of the parameter's path."""

    def update(updates: PyTree, state: PyTree, params: PyTree = None, *, step: jax.Array, **_: Any) -> tuple[PyTree, PyTree]:
        rate = jnp.asarray(rules.learning_rate(step))

        def scaled(path: Any, direction: jax.Array) -> jax.Array:
            size = -_along_first_axis(rate, direction)
            if rules.layer_factor is not None:
                size = size * _along_first_axis(rules.layer_factor(names(path)), direction)
            return size * direction

        return jax.tree_util.tree_map_with_path(scaled, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _along_first_axis(values: ArrayLike, x: jax.Array) -> jax.Array:
    """A scalar as it is; a vector [n] as [n, 1, ...], to meet the n slices of x. Raises ValueError where x has not n slices."""
    values = jnp.asarray(values)
    if values.ndim == 0:
        return values
    if values.shape != x.shape[:1]:
        raise ValueError(f"rates or factors: found shape {values.shape} for a parameter of shape {x.shape}, expected {x.shape[:1]}")
    return values.reshape(-1, *(1,) * (x.ndim - 1))


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
