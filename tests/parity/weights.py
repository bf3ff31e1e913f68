"""Our trees as the oracle's tensors: names, and axes as PyTorch has them. And how far two sets of tensors are apart."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from flax.traverse_util import flatten_dict
from torch import nn

# Tensors are tiny here: more threads would spend their time waiting for one another, and for the other tests.
torch.set_num_threads(1)

_RENAMED = (
    (r"^heads_dino/mlp_(\d+)/", lambda match: f"head/mlp/{2 * int(match[1])}/"),
    (r"^heads_dino/last_layer/direction$", "head/last_layer/weight_v"),
    (r"^heads_dino/last_layer/scale$", "head/last_layer/weight_g"),
    (r"^heads_(spatial|channel)(_local)?/", r"relations/\1\2/"),
    (r"\bblocks_(\d+)/", r"blocks/\1/"),
    (r"/(kernel|scale)$", "/weight"),
    (r"/(mean|var)$", r"/running_\1"),
)


def tensors(*trees: Any) -> dict[str, np.ndarray]:
    """Parameters, gradients or running statistics of a network by the oracle's names, float64."""
    return {_name(path): _axes(path, np.asarray(leaf, np.float64)) for tree in trees for path, leaf in flatten_dict(tree, sep="/").items()}


def _name(name: str) -> str:
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return name.replace("/", ".")


def _axes(path: str, array: np.ndarray) -> np.ndarray:
    keys = path.split("/")
    if keys[-1] != "kernel":
        return array
    array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
    return array[..., None, None] if keys[-2] == "predictor" else array


def load(network: nn.Module, *trees: Any) -> None:
    """Put our trees into an oracle network: every tensor of it but counters, and fixed lengths of prototypes."""
    found = {name: torch.from_numpy(array) for name, array in tensors(*trees).items()}
    missing, unexpected = network.load_state_dict(found, strict=False)
    assert not unexpected, unexpected
    assert all(name.endswith(("num_batches_tracked", "weight_g")) for name in missing), missing


def arrays(found: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy().astype(np.float64) for name, tensor in found.items()}


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """|found - expected| / |expected|; where nothing is expected, the size of what was found."""
    norm = np.linalg.norm(expected)
    return float(np.linalg.norm(found - expected) / (norm or 1.0))
