"""UperNet's head and its auxiliary head, the necks that make a pyramid of a ViT's blocks, and the linear head.

Sources: Xiao et al. 2018; iBOT's configs of MMSegmentation 0.18. Maps are [b, h, w, d].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from sere_jax.models.init import uniform_fan_in
from sere_jax.models.norm import BatchNorm
from sere_jax.ops.pooling import adaptive_mean, resize_bilinear

Map = Float[jax.Array, "b h w d"]
POOLS = (1, 2, 3, 6)
_HE = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class ConvNorm(nn.Module):
    """Convolution without bias, BatchNorm, ReLU."""

    channels: int
    side: int
    running: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Map) -> Float[jax.Array, "b h w c"]:
        x = nn.Conv(self.channels, (self.side,) * 2, use_bias=False, dtype=self.dtype, kernel_init=_HE, name="conv")(x)
        return nn.relu(BatchNorm(running=self.running, name="bn")(x)).astype(self.dtype)


class Doubling(nn.Module):
    """A transposed convolution of 2 x 2 with stride 2, as one matrix product: maps of twice the size.

    out[2 i + a, 2 j + b] = x[i, j] K[1 - a, 1 - b] + bias, as `nn.ConvTranspose` has it, whose parameters it takes. The windows do not
    overlap, so that each input cell makes four output cells. XLA would put zeros between the cells and do four times the work.
    """

    channels: int
    dtype: Any = jnp.float32
    kernel_init: Any = nn.initializers.lecun_normal()
    bias_init: Any = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Map) -> Float[jax.Array, "b H W c"]:
        kernel = self.param("kernel", self.kernel_init, (2, 2, x.shape[-1], self.channels), jnp.float32)
        bias = self.param("bias", self.bias_init, (self.channels,), jnp.float32)
        flipped = kernel[::-1, ::-1].astype(self.dtype)
        cells = jnp.einsum("bijd,acdk->biajck", x.astype(self.dtype), flipped)
        batch, height, _, width, _, channels = cells.shape
        return cells.reshape(batch, 2 * height, 2 * width, channels) + bias.astype(self.dtype)


class Necks(nn.Module):
    """Four maps of one size -> maps of 4, 2, 1 and 1/2 times that size: transposed convolutions, nothing, maximum.

    The first has a BatchNorm and an exact GELU between its two transposed convolutions.
    """

    running: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        first, second, third, fourth = maps
        x = self._doubled(first, "up4_0")
        x = nn.gelu(BatchNorm(running=self.running, name="up4_bn")(x), approximate=False)
        last = nn.max_pool(jnp.asarray(fourth).astype(self.dtype), (2, 2), strides=(2, 2))
        return self._doubled(x, "up4_1"), self._doubled(second, "up2"), jnp.asarray(third).astype(self.dtype), last

    def _doubled(self, x: Map, name: str) -> Float[jax.Array, "b H W d"]:
        width = x.shape[-1]
        init = uniform_fan_in(4 * width)  # PyTorch's default, whose fan is that of the outputs
        return Doubling(width, self.dtype, kernel_init=init, bias_init=init, name=name)(x)


class UperNet(nn.Module):
    """A pyramid of four maps -> logits in the size of the first map, float32.

    Pyramid pooling of the last map, lateral convolutions, a top-down sum, and a convolution over all levels together. `keep` [b, c]
    scales the channels before the classifier (dropout of whole channels).
    """

    classes: int
    channels: int
    running: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array], keep: Float[jax.Array, "b c"] | None = None) -> Float[jax.Array, "b h w k"]:
        levels = [self._conv(1, f"lateral_{i}")(x) for i, x in enumerate(maps[:-1])] + [self._pooled(maps[-1])]
        for i in reversed(range(len(levels) - 1)):
            levels[i] = levels[i] + resize_bilinear(levels[i + 1], _shape(levels[i]))
        fused = [self._conv(3, f"fpn_{i}")(x) for i, x in enumerate(levels[:-1])] + levels[-1:]
        together = jnp.concatenate([resize_bilinear(x, _shape(fused[0])) for x in fused], axis=-1).astype(self.dtype)
        return classify(self._conv(3, "fpn_bottleneck")(together), self.classes, keep)

    def _conv(self, side: int, name: str) -> ConvNorm:
        return ConvNorm(self.channels, side, self.running, self.dtype, name=name)

    def _pooled(self, x: Map) -> Float[jax.Array, "b h w c"]:
        parts = [jnp.asarray(x).astype(self.dtype)]
        for side in POOLS:
            small = self._conv(1, f"pool_{side}")(adaptive_mean(x, side).astype(self.dtype))
            parts.append(resize_bilinear(small, _shape(x)).astype(self.dtype))
        return self._conv(3, "bottleneck")(jnp.concatenate(parts, axis=-1))


class FcnHead(nn.Module):
    """One 3 x 3 convolution with BatchNorm and ReLU, dropout of channels, a linear classifier: the auxiliary head."""

    classes: int
    channels: int = 256
    running: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Map, keep: Float[jax.Array, "b c"] | None = None) -> Float[jax.Array, "b h w k"]:
        x = ConvNorm(self.channels, 3, self.running, self.dtype, name="conv_0")(jnp.asarray(x).astype(self.dtype))
        return classify(x, self.classes, keep)


class LinearHead(nn.Module):
    """BatchNorm without activation, then a linear classifier of each token. Source: DINOv2's linear segmentation."""

    classes: int
    running: bool = False

    @nn.compact
    def __call__(self, x: Map, keep: Float[jax.Array, "b c"] | None = None) -> Float[jax.Array, "b h w k"]:
        return classify(BatchNorm(running=self.running, name="bn")(x), self.classes, keep)


class TokenHead(nn.Module):
    """A LayerNorm of its own and a linear classifier of each token, which starts near 0. Source: ImageNet-S's segmentation of ViTs.

    Without `norm` the classifier alone, for the map of a ResNet.
    """

    classes: int
    norm: bool = True
    norm_eps: float = 1e-6

    @nn.compact
    def __call__(self, x: Map) -> Float[jax.Array, "b h w k"]:
        x = x.astype(jnp.float32)
        if self.norm:
            x = nn.LayerNorm(epsilon=self.norm_eps, dtype=jnp.float32, use_fast_variance=False, name="fc_norm")(x)
        small, bias = nn.initializers.normal(2e-5), uniform_fan_in(x.shape[-1])
        return nn.Dense(self.classes, kernel_init=small, bias_init=bias, name="classifier")(x)


def classify(x: Map, classes: int, keep: Float[jax.Array, "b c"] | None) -> Float[jax.Array, "b h w k"]:
    """A 1 x 1 convolution named `classifier`, normal with deviation 0.01, in float32; called inside a compact module."""
    x = x.astype(jnp.float32)
    if keep is not None:
        x = x * keep[:, None, None]
    return nn.Dense(classes, kernel_init=nn.initializers.normal(0.01), name="classifier")(x)


def _shape(x: Map) -> tuple[int, int]:
    return x.shape[1], x.shape[2]
