"""MoCo v3's checkpoints: `module.base_encoder.*` and `module.momentum_encoder.*` by timm's names, projector in place of the classifier.

The ViT-S has 12 heads, not 6; its fixed sine-cosine positions are stored like trained ones. Projector and predictor are
left: they belong to MoCo's loss, and the features are those of the base encoder.
"""

from __future__ import annotations

import numpy as np

from sere_jax.interop.tables import InteropError, Tensors

ENCODERS = {"student": "base_encoder", "teacher": "momentum_encoder"}
# The projector stands where a classifier would: in `head` of the ViTs, in `fc` of the ResNet.
EXPECTED_LEFT = ("head.*", "fc.*")
HEADS = {384: 12, 768: 12}  # attention heads by width


def encoder(tensors: Tensors, network: str) -> dict[str, np.ndarray]:
    """The tensors of one encoder (student = base, teacher = momentum) without their prefix.

    Raises InteropError where the file does not hold it.
    """
    prefix = ENCODERS[network] + "."
    plain = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    found = {name.removeprefix(prefix): tensor for name, tensor in plain.items() if name.startswith(prefix)}
    if not found:
        there = sorted({name.partition(".")[0] for name in plain})
        raise InteropError(f"network: found no {prefix}* for the {network}; there are {', '.join(there[:5])}")
    return found
