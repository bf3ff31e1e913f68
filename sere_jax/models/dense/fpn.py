"""The feature pyramid of a detector: lateral convolutions, a top-down sum, and a coarser fifth level.

Below it a ViT's blocks become four maps by `upernet.Necks`; a ResNet's stages are such maps already. Source: Lin et al. 2017.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

_XAVIER = nn.initializers.xavier_uniform()


class FeaturePyramid(nn.Module):
    """Maps [b, h, w, d], each half as large as the one before -> one map more, all of `channels`.

    A level is its lateral map plus the level above, each of whose cells is repeated 2 x 2, and then a 3 x 3 convolution. The last level
    has every second row and column of the one before. There is no normalisation and no activation. Raises ValueError where a map is
    not half as large as the one before: the images' sides must be multiples of the coarsest map's stride.
    """

    channels: int = 256
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        for finer, coarser in itertools.pairwise(maps):
            if finer.shape[1:3] != (2 * coarser.shape[1], 2 * coarser.shape[2]):
                raise ValueError(
                    f"maps of a pyramid: found sides {[x.shape[1:3] for x in maps]}, expected each to be half of the one before"
                )
        levels = [self._conv(1, f"lateral_{i}")(x) for i, x in enumerate(maps)]
        for i in reversed(range(len(levels) - 1)):
            levels[i] = levels[i] + _repeated(levels[i + 1])
        levels = [self._conv(3, f"output_{i}")(x) for i, x in enumerate(levels)]
        return *levels, levels[-1][:, ::2, ::2]

    def _conv(self, side: int, name: str) -> nn.Conv:
        return nn.Conv(self.channels, (side, side), dtype=self.dtype, kernel_init=_XAVIER, name=name)


def _repeated(x: jax.Array) -> jax.Array:
    """Twice as large by repetition: the nearest neighbour."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
