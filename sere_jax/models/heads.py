"""What stands between the backbone's tokens and a loss: DINO's prototype head and SERE's relation heads."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from sere_jax.models.init import uniform_fan_in
from sere_jax.types import PrototypeOutput


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last, with PyTorch's running statistics (momentum 0.1, unbiased variance).

    Always normalises with the batch's own statistics, in student and teacher: SERE's teacher is never in evaluation mode.
    Under `jax.jit` over a sharded batch the means are global, so this is synchronised BatchNorm on any number of devices.
    """

    epsilon: float = 1e-5
    momentum: float = 0.9  # share of the old running statistic that is kept

    @nn.compact
    def __call__(self, x: Float[jax.Array, "*batch d"]) -> Float[jax.Array, "*batch d"]:
        d = x.shape[-1]
        scale, bias = self.param("scale", nn.initializers.ones, (d,)), self.param("bias", nn.initializers.zeros, (d,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (d,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (d,))
        x = x.astype(jnp.float32)
        axes, count = tuple(range(x.ndim - 1)), x.size // d
        mean = jnp.mean(x, axes)
        centered = x - mean
        var = jnp.mean(jnp.square(centered), axes)
        if not self.is_initializing():
            keep = self.momentum
            running_mean.value = keep * running_mean.value + (1 - keep) * mean
            running_var.value = keep * running_var.value + (1 - keep) * var * (count / max(count - 1, 1))
        return centered * jax.lax.rsqrt(var + self.epsilon) * scale + bias


class RelationHead(nn.Module):
    """SERE's module on patch tokens: z = ReLU(BN(x)); the student's side adds the predictor p = ReLU(BN(W z)), W without bias.

    The projection has no linear layer, and the predictor's keeps PyTorch's default initialisation (authors' code).
    `symmetric` drops the predictor from the student's side (TPAMI Table 15).
    """

    dtype: Any = jnp.float32
    symmetric: bool = False

    @nn.compact
    def __call__(self, tokens: Float[jax.Array, "*batch d"], *, student: bool) -> Float[jax.Array, "*batch d"]:
        d = tokens.shape[-1]
        z = nn.relu(BatchNorm(name="bn")(tokens))
        if self.symmetric or not student:
            return z
        dense = nn.Dense(d, use_bias=False, dtype=self.dtype, kernel_init=uniform_fan_in(d), name="predictor")
        return nn.relu(BatchNorm(name="predictor_bn")(dense(z)))


class Prototypes(nn.Module):
    """Weight-normalised prototypes: row = g v / |v|. g is 1 and no parameter with `norm`, otherwise trained from 1."""

    count: int
    norm: bool

    @nn.compact
    def __call__(self, width: int) -> Float[jax.Array, "k e"]:
        # Not normalised at the start: the length of v, about 0.58, sets the effective size of its steps.
        direction = self.param("direction", uniform_fan_in(width), (self.count, width), jnp.float32)
        rows = direction * jax.lax.rsqrt(jnp.sum(jnp.square(direction), axis=-1, keepdims=True))
        return rows if self.norm else rows * self.param("scale", nn.initializers.ones, (self.count, 1))


class PrototypeHead(nn.Module):
    """DINO's projection head up to its last product: MLP with exact GELU, L2 normalisation, prototypes.

    Source: DINO's reference recipe; `layers` linear layers, `hidden` wide, ending in `bottleneck` dimensions.
    """

    prototypes: int
    hidden: int = 2048
    bottleneck: int = 256
    layers: int = 3
    norm_last_layer: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: Float[jax.Array, "*batch d"], *, student: bool) -> PrototypeOutput:
        x = tokens
        for i in range(self.layers):
            last = i == self.layers - 1
            width = self.bottleneck if last else self.hidden
            x = nn.Dense(width, dtype=self.dtype, kernel_init=nn.initializers.normal(0.02), name=f"mlp_{i}")(x)
            x = x if last else nn.gelu(x, approximate=False)
        x = x.astype(jnp.float32)
        # PyTorch's normalize: divide by max(|x|, 1e-12); the square keeps the gradient finite at zero.
        x = x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-24))
        return PrototypeOutput(x, Prototypes(self.prototypes, self.norm_last_layer, name="last_layer")(self.bottleneck))


class BarlowProjector(nn.Module):
    """Barlow Twins' projector: three linear layers without bias, each `width` wide, BatchNorm and ReLU after the first two."""

    width: int = 8192
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: Float[jax.Array, "*batch d"], *, student: bool) -> Float[jax.Array, "*batch e"]:
        x = tokens
        for i in range(3):
            init = uniform_fan_in(x.shape[-1])
            x = nn.Dense(self.width, use_bias=False, dtype=self.dtype, kernel_init=init, name=f"mlp_{i}")(x)
            x = x if i == 2 else nn.relu(BatchNorm(name=f"bn_{i}")(x))
        return x
