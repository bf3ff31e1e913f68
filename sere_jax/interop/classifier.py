"""A fine-tuned network under timm's names: a backbone with the classifier `head` (a ResNet's `fc`) and, for pooled patches, `fc_norm`."""

from __future__ import annotations

from typing import Any

import numpy as np

from sere_jax.interop.resnet import to_resnet
from sere_jax.interop.tables import InteropError, Tree, to_theirs
from sere_jax.interop.timm import linear, norm, to_timm

PARTS = ("head", "fc_norm", "projection")  # of a fine-tuned network, beside its backbone


def to_timm_classifier(params: Tree, batch_stats: Tree) -> dict[str, np.ndarray]:
    """The tensors of timm's VisionTransformer or ResNet with `num_classes` above 0.

    With `fc_norm` the backbone's final norm is left out: timm's `global_pool="avg"` has none.

    Raises InteropError for a network without a classifier, and for one whose classifier stands on a projection layer, for which timm
    has no place.
    """
    if "head" not in params:
        raise InteropError("with_heads: found no classifier, and the timm layout has no heads beside it; expected a fine-tuned network")
    if "projection" in params:
        raise InteropError(
            "with_heads: found a projection layer before the classifier (head_layer=1), expected the format npz: timm has none"
        )
    backbone: Tree = params["backbone"]
    inputs, classes = params["head"]["kernel"].shape
    if "conv1" in backbone:
        return to_resnet(backbone, batch_stats["backbone"]) | to_theirs({"head": params["head"]}, linear("head/", "fc.", inputs, classes))
    tensors = to_timm(backbone)
    parts: dict[str, Any] = {"head": params["head"]}
    table = linear("head/", "head.", inputs, classes)
    if "fc_norm" in params:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("norm.")}
        parts["fc_norm"] = params["fc_norm"]
        table += norm("fc_norm/", "fc_norm.", inputs)
    return tensors | to_theirs(parts, table)


def timm_arguments(params: Tree) -> dict[str, Any]:
    """The arguments of timm's networks that the classifier changes."""
    classes = {"num_classes": int(params["head"]["kernel"].shape[1])}
    if "conv1" in params["backbone"]:
        return classes
    return {**classes, "global_pool": "avg" if "fc_norm" in params else "token"}
