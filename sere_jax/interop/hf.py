"""Hugging Face's names for a ViT: those of its files, and those of its modules since version 5.

transformers 5 renamed its modules and restores the old names when it writes a file, so files keep the old names. A `state_dict`
that was saved by hand has the new ones. Both are read; the old ones are written. Queries, keys and values are three linear layers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from sere_jax.interop.tables import InteropError, Line, Tensors, Tree, to_ours, to_theirs
from sere_jax.interop.timm import Architecture, architecture_of_params, linear, norm, read_sizes, unstack_blocks

_PATCH = "embeddings.patch_embeddings.projection."
# Prefix of the blocks -> (attention's linear layers q, k, v, output; the MLP's two).
_BLOCKS = {
    "encoder.layer": (
        ("attention.attention.query", "attention.attention.key", "attention.attention.value", "attention.output.dense"),
        ("intermediate.dense", "output.dense"),
    ),
    "layers": (
        ("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj"),
        ("mlp.fc1", "mlp.fc2"),
    ),
}
OLD, NEW = _BLOCKS
_MASK_TOKEN = Line("mask_token", "embeddings.mask_token", (1, 1, 0))

# Parts beside the backbone: pooler, classifier, and the decoder of masked pre-training.
EXPECTED_LEFT = ("pooler.dense.*", "classifier.*", "decoder.*")


def lines(architecture: Architecture, *, blocks: str = OLD, mask_token: bool = False) -> list[Line]:
    """The table of one architecture, with separate q, k and v on our side too; `blocks` chooses the names, `OLD` or `NEW`."""
    d, p = architecture.width, architecture.patch_size
    slots = 1 + (architecture.image_size // p) ** 2
    table = [
        Line("cls_token", "embeddings.cls_token", (1, 1, d)),
        Line("pos_embed", "embeddings.position_embeddings", (1, slots, d)),
        Line("patch_embed/proj/kernel", _PATCH + "weight", (p, p, architecture.in_channels, d), "conv"),
        Line("patch_embed/proj/bias", _PATCH + "bias", (d,)),
    ]
    if mask_token:
        table.append(_MASK_TOKEN._replace(shape=(1, 1, d)))
    for i in range(architecture.depth):
        table += _block(f"blocks_{i}/", f"{blocks}.{i}.", d, *_BLOCKS[blocks])
    return table + norm("norm/", "layernorm.", d)


def _block(ours: str, theirs: str, d: int, attention: tuple[str, ...], mlp: tuple[str, ...]) -> list[Line]:
    table = norm(ours + "norm1/", theirs + "layernorm_before.", d) + norm(ours + "norm2/", theirs + "layernorm_after.", d)
    for name, their_name in zip(("q", "k", "v", "proj"), attention, strict=True):
        table += linear(f"{ours}attn/{name}/", f"{theirs}{their_name}.", d, d)
    table += linear(ours + "mlp/fc1/", f"{theirs}{mlp[0]}.", d, 4 * d)
    return table + linear(ours + "mlp/fc2/", f"{theirs}{mlp[1]}.", 4 * d, d)


def to_hf(params: Tree, *, blocks: str = OLD) -> dict[str, np.ndarray]:
    """Convert a backbone's parameters, scanned or not, to tensors of a `ViTModel` without pooler. The mask token is dropped.

    Raises InteropError with all parameters that are missing, unknown or misshapen.
    """
    params = unstack_blocks(params)
    table = lines(architecture_of_params(params), blocks=blocks)
    return to_theirs(_over_blocks(params, _split), table, ignore=("mask_token",))


def from_hf(tensors: Tensors, *, ignore: Iterable[str] = ()) -> dict[str, Any]:
    """Convert tensors of a `ViTModel`, or of a model around one (names begin with `vit.`), to a backbone's parameters.

    `ignore`: patterns of names, without `vit.`, that may be unused.
    Raises InteropError with all names that are missing, unused or misshapen.
    """
    named = strip_prefix(tensors)
    blocks = NEW if any(name.startswith(f"{NEW}.") for name in named) else OLD
    mask_token = _MASK_TOKEN.theirs in named
    tree = to_ours(named, lines(_sizes(named, blocks), blocks=blocks, mask_token=mask_token), ignore=ignore)
    if mask_token:
        tree["mask_token"] = tree["mask_token"][0]
    return _over_blocks(tree, _fuse)


def strip_prefix(tensors: Tensors) -> dict[str, np.ndarray]:
    """Remove the `vit.` that models around a ViT put before their names."""
    return {name.removeprefix("vit."): tensor for name, tensor in tensors.items()}


def _sizes(named: Tensors, blocks: str) -> Architecture:
    names = ("embeddings.cls_token", "embeddings.position_embeddings", _PATCH + "weight")
    return read_sizes(named, names, re.escape(blocks) + r"\.(\d+)\.", 1, (2, 1))


def _over_blocks(params: Tree, change: Any) -> dict[str, Any]:
    return {
        name: value | {"attn": change(value.get("attn", {}))} if name.startswith("blocks_") else value for name, value in params.items()
    }


def _split(attention: Tree) -> dict[str, Any]:
    """Split qkv, whose outputs are ordered q, k, v, into three layers."""
    if "qkv" not in attention or any(leaf.shape[-1] % 3 for leaf in attention["qkv"].values()):
        raise InteropError(f"attn: found {', '.join(attention) or 'nothing'}, expected qkv with outputs for q, k and v")
    thirds = {leaf: np.split(np.asarray(value), 3, axis=-1) for leaf, value in attention["qkv"].items()}
    rest = {name: value for name, value in attention.items() if name != "qkv"}
    return rest | {name: {leaf: parts[i] for leaf, parts in thirds.items()} for i, name in enumerate("qkv")}


def _fuse(attention: Tree) -> dict[str, Any]:
    fused = {leaf: np.concatenate([attention[name][leaf] for name in "qkv"], axis=-1) for leaf in ("kernel", "bias")}
    return {"qkv": fused, "proj": attention["proj"]}
