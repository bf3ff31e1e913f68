"""Layer-wise decay: the deeper a layer, the closer its rate to the schedule's. Functions of a parameter's path, as `train.optim` takes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

_BLOCK = re.compile(r"^backbone/blocks_(\d+)/")
_BOTTLENECK = re.compile(r"^backbone/layer(\d+)_(\d+)/")
_FIRST = ("backbone/cls_token", "backbone/pos_embed", "backbone/mask_token", "backbone/patch_embed/", "backbone/conv1/", "backbone/bn1/")
_TOKENS = ("cls_token", "pos_embed", "mask_token")


def layer_decay(decay: float, *, depth: int = 0, stages: Sequence[int] = ()) -> Callable[[str], float]:
    """The factor of each layer's rate: decay^(n - id), with n = 1 + the number of blocks.

    The id is 0 for the patch embedding, the positions and the cls token (a ResNet's stem), i + 1 for block i, and n for all that comes
    after the blocks: final norm, `fc_norm` and heads. Source: BEiT and MAE; a ResNet's bottleneck blocks count as blocks.

    Args:
      depth: blocks of a ViT. stages: blocks of each stage of a ResNet.

    >>> factor = layer_decay(0.5, depth=2)
    >>> [factor(path) for path in ("backbone/cls_token", "backbone/blocks_1/mlp/fc1/kernel", "head/kernel")]
    [0.125, 0.5, 1.0]
    """
    layers = (depth or sum(stages)) + 1

    def factor(path: str) -> float:
        if path.startswith(_FIRST):
            return decay**layers
        if block := _BLOCK.match(path):
            return decay ** (layers - 1 - int(block[1]))
        if block := _BOTTLENECK.match(path):
            return decay ** (layers - 1 - sum(stages[: int(block[1]) - 1]) - int(block[2]))
        return 1.0

    return factor


def decayed(path: str, dimensions: int) -> bool:
    """Whether fine-tuning decays a parameter: kernels are, biases, scales, positions and tokens are not. Source: DeiT and MAE."""
    return dimensions > 1 and path.rpartition("/")[2] not in _TOKENS
