"""Heads between the backbone's tokens and a loss: SERE's relation heads, prototype heads, projectors and predictors."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from sere_jax.models.init import uniform_fan_in
from sere_jax.models.norm import BatchNorm
from sere_jax.ops.normalise import unit_length
from sere_jax.types import PrototypeOutput


class RelationHead(nn.Module):
    """SERE's module on patch tokens: z = ReLU(BN(x)); the student adds a predictor p = ReLU(BN(W z)) without bias.

    The projection has no linear layer, and the predictor's keeps PyTorch's default initialisation (authors' code).
    `symmetric` removes the predictor (TPAMI Table 15). The teacher's predictor runs only to update its running statistics, which the
    authors' checkpoints contain. No loss depends on them.
    """

    dtype: Any = jnp.float32
    symmetric: bool = False

    @nn.compact
    def __call__(self, tokens: Float[jax.Array, "*batch d"], *, student: bool) -> Float[jax.Array, "*batch d"]:
        d = tokens.shape[-1]
        z = nn.relu(BatchNorm(name="bn")(tokens))
        if self.symmetric:
            return z
        dense = nn.Dense(d, use_bias=False, dtype=self.dtype, kernel_init=uniform_fan_in(d), name="predictor")
        predicted = nn.relu(BatchNorm(name="predictor_bn")(dense(z)))
        return predicted if student else z


class Prototypes(nn.Module):
    """Weight-normalised prototypes: row = g v / |v|. With `norm` g is fixed to 1; otherwise it is trained and starts at 1."""

    count: int
    norm: bool

    @nn.compact
    def __call__(self, width: int) -> Float[jax.Array, "k e"]:
        # Not normalised at the start: the length of v, about 0.58, sets how far one update turns it.
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
        return PrototypeOutput(unit_length(x), Prototypes(self.prototypes, self.norm_last_layer, name="last_layer")(self.bottleneck))


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


class NormedMlp(nn.Module):
    """MoCo v3's perceptron: linear layers without bias, BatchNorm and ReLU after each but the last.

    The last is followed by a BatchNorm without scale and bias if `last_norm`. The initialisation is PyTorch's default.
    """

    widths: tuple[int, ...]  # of the layers' outputs
    last_norm: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[jax.Array, "b d"]) -> Float[jax.Array, "b e"]:
        for i, width in enumerate(self.widths):
            init = uniform_fan_in(x.shape[-1])
            x = nn.Dense(width, use_bias=False, dtype=self.dtype, kernel_init=init, name=f"mlp_{i}")(x)
            if i < len(self.widths) - 1:
                x = nn.relu(BatchNorm(name=f"bn_{i}")(x))
            elif self.last_norm:
                x = BatchNorm(affine=False, name=f"bn_{i}")(x)
        return x


class ContrastiveHead(nn.Module):
    """MoCo v3's head: a projector of `layers` layers; the student adds a predictor of two layers.

    Each view is a batch of its own for BatchNorm, as the reference code runs one view after the other. Source: MoCo v3's code.
    """

    layers: int = 3
    hidden: int = 4096
    width: int = 256
    predictor_last_norm: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: Float[jax.Array, "b v d"], *, student: bool) -> Float[jax.Array, "b v e"]:
        projector = NormedMlp((self.hidden,) * (self.layers - 1) + (self.width,), dtype=self.dtype, name="projector")
        views = [projector(tokens[:, i]) for i in range(tokens.shape[1])]
        if student:
            predictor = NormedMlp((self.hidden, self.width), self.predictor_last_norm, self.dtype, name="predictor")
            views = [predictor(x) for x in views]
        return jnp.stack(views, axis=1).astype(jnp.float32)
