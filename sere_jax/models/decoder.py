"""MAE's decoder: from the visible patches' tokens to the pixels of all patches."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Float

from sere_jax.models.vit import Block
from sere_jax.ops.positions import sincos_positions
from sere_jax.types import VisibleTokens


class PixelDecoder(nn.Module):
    """A narrow ViT with fixed positions; a learned mask token stands for each hidden patch.

    Only the student has it. Source: He et al. 2022, section 3, and the reference code's initialisation.
    """

    values: int  # numbers to predict for a patch
    width: int = 512
    depth: int = 8
    heads: int = 16
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: VisibleTokens, *, student: bool) -> Float[jax.Array, "b v n p"]:
        """Predict the pixels of all patches. `tokens.restore` gives the token of each position on the square grid."""
        b, v, n = tokens.restore.shape
        cls, patches, restore = (rearrange(jnp.asarray(x), "b v ... -> (b v) ...") for x in tokens)
        x = self._linear(self.width, "embed")(jnp.concatenate([cls[:, None], patches], axis=1))
        mask_token = self.param("mask_token", nn.initializers.normal(0.02), (1, 1, self.width), jnp.float32)
        hidden = jnp.broadcast_to(mask_token.astype(x.dtype), (b * v, n - patches.shape[1], self.width))
        placed = jnp.take_along_axis(jnp.concatenate([x[:, 1:], hidden], axis=1), restore[..., None], axis=1)
        x = jnp.concatenate([x[:, :1], placed], axis=1)
        x = x + jnp.asarray(sincos_positions(self.width, (round(n**0.5),) * 2, "columns"), x.dtype)
        for i in range(self.depth):
            x, _ = Block(self.heads, self.dtype, "mae", name=f"blocks_{i}")(x, None)
        x = nn.LayerNorm(epsilon=1e-6, dtype=jnp.float32, use_fast_variance=False, name="norm")(x)
        predicted = self._linear(self.values, "predict")(x[:, 1:].astype(self.dtype))
        return rearrange(predicted, "(b v) n p -> b v n p", v=v).astype(jnp.float32)

    def _linear(self, width: int, name: str) -> nn.Dense:
        return nn.Dense(width, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform(), name=name)
