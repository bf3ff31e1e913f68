"""MoCo v3's checkpoints: `module.base_encoder.*` and `module.momentum_encoder.*`, by timm's names.

A projector takes the classifier's place. MoCo v3's ViT-S has 12 heads, not 6; its fixed sine-cosine positions are stored like
learned ones. Projector and predictor belong to MoCo's loss and are left out. MoCo v3 itself evaluates the base encoder.
"""

from __future__ import annotations

import numpy as np

from sere_jax.interop.tables import InteropError, Tensors

ENCODERS = {"student": "base_encoder", "teacher": "momentum_encoder"}
EVALUATED = "student"
# The projector has the classifier's name: `head` in the ViTs, `fc` in the ResNet.
EXPECTED_LEFT = ("head.*", "fc.*")
HEADS = {384: 12, 768: 12}  # attention heads by width


def is_mocov3(names: list[str]) -> bool:
    """Whether names are those of a MoCo v3 checkpoint."""
    plain = (name.removeprefix("module.") for name in names)
    return any(name.startswith(tuple(f"{encoder}." for encoder in ENCODERS.values())) for name in plain)


def encoder(tensors: Tensors, network: str) -> dict[str, np.ndarray]:
    """The tensors of one encoder (student: base, teacher: momentum) without their prefix.

    Raises InteropError where the file does not hold it.
    """
    prefix = ENCODERS[network] + "."
    plain = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    of_encoder = {name.removeprefix(prefix): tensor for name, tensor in plain.items() if name.startswith(prefix)}
    if not of_encoder:
        modules = sorted({name.partition(".")[0] for name in plain})
        raise InteropError(f"network: found no {prefix}* for the {network}; there are {', '.join(modules[:5])}")
    return of_encoder
