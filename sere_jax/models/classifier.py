"""A backbone with a linear classifier on top: what fine-tuning trains."""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from sere_jax.types import Features

Pooling = Literal["cls", "patches"]
POOLINGS: tuple[Pooling, ...] = ("cls", "patches")


class Classifier(nn.Module):
    """Images [b, H, W, c], normalised -> logits [b, k] in float32.

    The logits are a linear map of one vector an image. `pool` says which: `cls` is the cls token after the backbone's final norm;
    `patches` is the mean of the patch tokens before that norm, through a LayerNorm of its own (`fc_norm`, which starts at 1 and 0). A
    ResNet's mean map serves as both and has no `fc_norm`. With `hidden` there is a linear layer of that many outputs and a GELU between:
    the first layer of DINO's head, from which iBOT fine-tunes on few labels.

    Sources: MAE's fine-tuning for `patches` and the small head; iBOT's semi-supervised evaluation for `hidden`.
    """

    backbone: nn.Module
    classes: int
    pool: Pooling = "patches"
    head_std: float = 2e-5  # of the classifier's first weights, which are normal
    hidden: int = 0
    norm_eps: float = 1e-6
    fc_norm: bool = True

    @nn.compact
    def __call__(
        self, images: Float[jax.Array, "b H W c"], *, drop_path_noise: Float[jax.Array, "b l 2"] | None = None
    ) -> Float[jax.Array, "b k"]:
        """Compute the logits; `drop_path_noise` switches a ViT's stochastic depth on."""
        x = self._pooled(self.backbone(images, drop_path_noise=drop_path_noise))
        if self.hidden:
            kernel = nn.initializers.normal(0.02)
            x = nn.gelu(nn.Dense(self.hidden, kernel_init=kernel, name="projection")(x), approximate=False)
        return nn.Dense(self.classes, kernel_init=nn.initializers.normal(self.head_std), name="head")(x)

    def _pooled(self, features: Features) -> Float[jax.Array, "b d"]:
        if self.pool == "cls":
            return jnp.asarray(features.cls).astype(jnp.float32)
        mean = jnp.mean(jnp.asarray(features.patches_prenorm).astype(jnp.float32), axis=(1, 2))
        if not self.fc_norm:
            return mean
        return nn.LayerNorm(epsilon=self.norm_eps, dtype=jnp.float32, use_fast_variance=False, name="fc_norm")(mean)
