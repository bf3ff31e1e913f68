"""Batch normalisation as the field's recipes use it, and its running statistics beside or among the parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from sere_jax.ops.normalise import mesh_axes, standardise
from sere_jax.types import PyTree

STATISTICS = ("mean", "var")


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last, with PyTorch's running statistics (momentum 0.1, unbiased variance).

    In training it normalises with the batch's own statistics, in student and teacher: SERE's teacher is never in evaluation
    mode. Under `jax.jit` over a sharded batch the means are global, so this is synchronised BatchNorm on any number of devices.
    With `running` it normalises with the running statistics and does not update them, as a ResNet does in evaluation.
    """

    epsilon: float = 1e-5
    momentum: float = 0.9  # share of the old running statistic that is kept
    affine: bool = True  # scale and bias after the normalisation
    running: bool = False
    scale_init: Any = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Float[jax.Array, "*batch d"]) -> Float[jax.Array, "*batch d"]:
        d = x.shape[-1]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (d,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (d,))
        if self.running:
            normal = (x.astype(jnp.float32) - running_mean.value) * jax.lax.rsqrt(running_var.value + self.epsilon)
        else:
            normal, mean, var = standardise(x, self.epsilon)
            count = x.size // d * jax.lax.axis_size(mesh_axes()) if mesh_axes() else x.size // d
            if not self.is_initializing():
                keep = self.momentum
                running_mean.value = keep * running_mean.value + (1 - keep) * mean
                running_var.value = keep * running_var.value + (1 - keep) * var * (count / max(count - 1, 1))
        if not self.affine:
            return normal
        scale, bias = self.param("scale", self.scale_init, (d,)), self.param("bias", nn.initializers.zeros, (d,))
        return normal * scale + bias


def join_statistics(params: PyTree, batch_stats: PyTree) -> PyTree:
    """Merge parameters and running statistics into one tree, such as `bn1/{scale, bias, mean, var}`, for evaluation."""
    joined = dict(params)
    for name, value in batch_stats.items():
        joined[name] = join_statistics(joined.get(name, {}), value) if isinstance(value, Mapping) else value
    return joined


def split_statistics(joined: PyTree) -> dict[str, PyTree]:
    """Undo `join_statistics`: return the Flax variables {"params": ..., "batch_stats": ...}. A ViT has no statistics."""
    params: dict[str, PyTree] = {}
    batch_stats: dict[str, PyTree] = {}
    for name, value in joined.items():
        if isinstance(value, Mapping):
            inner = split_statistics(value)
            params |= {name: inner["params"]} if inner["params"] else {}
            batch_stats |= {name: inner["batch_stats"]} if inner["batch_stats"] else {}
        elif name in STATISTICS:
            batch_stats[name] = value
        else:
            params[name] = value
    return {"params": params, "batch_stats": batch_stats}
