"""The residual network of bottleneck blocks (ResNet-50) as a Linen module; its parameter paths mirror torchvision's.

The stride stands in a block's 3 x 3 convolution, as in torchvision. Parameters are float32, convolutions run in `dtype`,
BatchNorm in float32. Source: He et al. 2016; torchvision's initialisation.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from sere_jax.models.norm import BatchNorm
from sere_jax.models.variants import EXPANSION
from sere_jax.types import Features


def _convolution(channels: int, side: int, stride: int, dtype: Any, name: str, dilation: int = 1) -> nn.Conv:
    """A convolution without bias that only its stride makes smaller; He's normal initialisation over the fan-out."""
    return nn.Conv(
        channels,
        (side, side),
        strides=stride,
        padding=[(side // 2 * dilation,) * 2] * 2,
        kernel_dilation=dilation,
        use_bias=False,
        dtype=dtype,
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        name=name,
    )


class Bottleneck(nn.Module):
    """ReLU(x + f(x)) with f = 1 x 1, 3 x 3 and 1 x 1 convolutions; a projection of x where the shape changes."""

    inner: int
    stride: int
    project: bool
    dtype: Any
    running: bool
    zero_init_residual: bool
    dilation: int = 1  # of the 3 x 3 convolution

    @nn.compact
    def __call__(self, x: Float[jax.Array, "b h w c"]) -> Float[jax.Array, "b i j d"]:
        y, outputs = x, self.inner * EXPANSION
        for i, (channels, side, stride) in enumerate(((self.inner, 1, 1), (self.inner, 3, self.stride), (outputs, 1, 1)), 1):
            zero = self.zero_init_residual and i == 3
            norm = BatchNorm(running=self.running, scale_init=nn.initializers.zeros if zero else nn.initializers.ones, name=f"bn{i}")
            y = norm(_convolution(channels, side, stride, self.dtype, f"conv{i}", self.dilation if side == 3 else 1)(y))
            y = y if i == 3 else nn.relu(y).astype(self.dtype)
        if self.project:
            x = _convolution(outputs, 1, self.stride, self.dtype, "downsample_conv")(x)
            x = BatchNorm(running=self.running, name="downsample_bn")(x)
        return nn.relu(x.astype(jnp.float32) + y).astype(self.dtype)


class ResNet(nn.Module):
    """Images [b, H, W, c], normalised, any size -> `Features`: cls = the last map's mean, patches = patches_prenorm = that map.

    Training uses each batch's statistics. `running_statistics` normalises with the running ones instead, for evaluation.
    """

    stages: tuple[int, ...] = (3, 4, 6, 3)  # blocks
    stem: int = 64  # channels
    image_size: int = 224
    in_channels: int = 3
    dtype: Any = jnp.float32
    remat: bool = False  # compute the blocks' activations again in the backward pass
    zero_init_residual: bool = False  # each block starts as the identity: the last BatchNorm's scale is 0
    running_statistics: bool = False
    # The last stages, which keep the size of their map: their convolutions are dilated and not strided. A dilated stage's dilation is twice
    # that of the stage before, and its first block still has that one's (torchvision's `replace_stride_with_dilation`).
    dilated_stages: int = 0

    @property
    def width(self) -> int:
        """Channels of the last map."""
        return self.stem * 2 ** (len(self.stages) - 1) * EXPANSION

    @property
    def patch_size(self) -> int:
        """Side of the image region, in pixels, that one position of the last map stands for."""
        return 2 ** (len(self.stages) + 1)

    @property
    def depth(self) -> int:
        """Blocks of all stages."""
        return sum(self.stages)

    @property
    def heads(self) -> int:
        """Attention heads: none."""
        return 0

    @nn.compact
    def __call__(
        self,
        images: Float[jax.Array, "b H W c"],
        *,
        masks: None = None,
        drop_path_noise: None = None,
        layers: tuple[int, ...] = (),
        attention: bool = False,
        maps: bool = False,
    ) -> Features:
        """Compute features; with `maps` also those of every stage, of strides 4, 8, 16 and so on without dilated stages.

        `Features.attention` is None, since there is none; masks, drop path and `layers` belong to a ViT.

        Raises ValueError for another number of channels than it was built for, and where `layers` are asked for.
        """
        if images.shape[-1] != self.in_channels:
            raise ValueError(f"images have {images.shape[-1]} channels; this ResNet was built with in_channels={self.in_channels}")
        if layers:
            raise ValueError(f"layers: found {layers}, expected none: a ResNet's blocks have maps of different sizes, not tokens")
        x = _convolution(self.stem, 7, 2, self.dtype, "conv1")(images.astype(self.dtype))
        x = nn.relu(BatchNorm(running=self.running_statistics, name="bn1")(x)).astype(self.dtype)
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        block_type, of_stages = nn.remat(Bottleneck) if self.remat else Bottleneck, []
        dilation = 1
        for stage, blocks in enumerate(self.stages):
            dilated = 0 < stage >= len(self.stages) - self.dilated_stages
            for block in range(blocks):
                x = block_type(
                    self.stem * 2**stage,
                    stride=2 if stage and not block and not dilated else 1,
                    project=not block,
                    dtype=self.dtype,
                    running=self.running_statistics,
                    zero_init_residual=self.zero_init_residual,
                    dilation=2 * dilation if dilated and block else dilation,
                    name=f"layer{stage + 1}_{block}",
                )(x)
            dilation *= 2 if dilated else 1
            of_stages.append(x)
        x = x.astype(jnp.float32)
        return Features(jnp.mean(x, axis=(1, 2)), x, x, maps=tuple(of_stages) if maps else ())
