"""Our ViT's parameters under the names of timm's `VisionTransformer`, which are also DINO's, iBOT's and SERE's."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from sere_jax.interop.tables import InteropError, Line, Tensors, Tree, count_of, to_ours, to_theirs

NORM_EPS = 1e-6  # of timm's, DINO's, iBOT's, SERE's and MoCo v3's ViTs


class Architecture(NamedTuple):
    """What determines a ViT besides its tensors; `image_size` (pixels) belongs to the stored position embedding."""

    width: int
    depth: int
    heads: int
    patch_size: int
    image_size: int
    in_channels: int = 3
    norm_eps: float = NORM_EPS  # of every LayerNorm


# timm's plain VisionTransformer has no mask token; masked image modelling adds one.
_OURS_ALONE = ("mask_token",)


def lines(architecture: Architecture) -> list[Line]:
    """The table of one architecture. qkv is one matrix on both sides; its outputs are ordered q, k, v, each head by head."""
    d, p = architecture.width, architecture.patch_size
    slots = 1 + (architecture.image_size // p) ** 2
    table = [
        Line("cls_token", "cls_token", (1, 1, d)),
        Line("pos_embed", "pos_embed", (1, slots, d)),
        Line("patch_embed/proj/kernel", "patch_embed.proj.weight", (p, p, architecture.in_channels, d), "conv"),
        Line("patch_embed/proj/bias", "patch_embed.proj.bias", (d,)),
    ]
    for i in range(architecture.depth):
        table += _block(f"blocks_{i}/", f"blocks.{i}.", d)
    return table + norm("norm/", "norm.", d)


def _block(ours: str, theirs: str, d: int) -> list[Line]:
    return [
        *norm(ours + "norm1/", theirs + "norm1.", d),
        *linear(ours + "attn/qkv/", theirs + "attn.qkv.", d, 3 * d),
        *linear(ours + "attn/proj/", theirs + "attn.proj.", d, d),
        *norm(ours + "norm2/", theirs + "norm2.", d),
        *linear(ours + "mlp/fc1/", theirs + "mlp.fc1.", d, 4 * d),
        *linear(ours + "mlp/fc2/", theirs + "mlp.fc2.", 4 * d, d),
    ]


def norm(ours: str, theirs: str, d: int) -> list[Line]:
    """The two lines of a normalisation's scale and bias; each prefix ends in its separator."""
    return [Line(ours + "scale", theirs + "weight", (d,)), Line(ours + "bias", theirs + "bias", (d,))]


def linear(ours: str, theirs: str, inputs: int, outputs: int) -> list[Line]:
    """The two lines of a linear layer with a bias; each prefix ends in its separator."""
    return [Line(ours + "kernel", theirs + "weight", (inputs, outputs), "linear"), Line(ours + "bias", theirs + "bias", (outputs,))]


def to_timm(params: Tree) -> dict[str, np.ndarray]:
    """Convert a backbone's parameters, scanned or not, to tensors by timm's names. The mask token is dropped: timm has none.

    Raises InteropError with all parameters that are missing, unknown or misshapen.
    """
    params = unstack_blocks(params)
    return to_theirs(params, lines(architecture_of_params(params)), ignore=_OURS_ALONE)


def from_timm(tensors: Tensors, *, ignore: Iterable[str] = ()) -> dict[str, Any]:
    """Convert tensors by timm's names to a backbone's parameters (unrolled blocks). `ignore`: patterns of names that may be unused.

    Raises InteropError with all names that are missing, unused or misshapen. Dropping layer scale, registers or a classifier
    changes what the network computes, so none of these is dropped unless `ignore` allows it.
    """
    return to_ours(tensors, lines(architecture_of(tensors, heads=1)), ignore=ignore)


def architecture_of(tensors: Tensors, *, heads: int) -> Architecture:
    """Read the sizes off tensors by timm's names. They do not show the number of heads, so the caller states it.

    Raises InteropError where the tensors are not those of a ViT, or the width is not divisible by `heads`.
    """
    return read_sizes(tensors, ("cls_token", "pos_embed", "patch_embed.proj.weight"), r"blocks\.(\d+)\.", heads, (2, 1))


def architecture_of_params(params: Tree, *, heads: int = 1) -> Architecture:
    """Read the sizes off our own parameters with unrolled blocks; raises as `architecture_of` does."""
    named = {key: value for key, value in params.items() if not isinstance(value, Mapping)}
    named |= {key: np.zeros(0) for key in params if key.startswith("blocks_")}
    kernel = params.get("patch_embed", {}).get("proj", {}).get("kernel")
    named |= {} if kernel is None else {"patch_embed/proj/kernel": kernel}
    return read_sizes(named, ("cls_token", "pos_embed", "patch_embed/proj/kernel"), r"blocks_(\d+)$", heads, (0, 2))


def read_sizes(named: Tensors, names: tuple[str, str, str], block: str, heads: int, axes: tuple[int, int]) -> Architecture:
    """Read the sizes off a ViT's tensors of any naming; raises as `architecture_of` does.

    Args:
      names: of the cls token, the position embedding and the patch convolution's kernel.
      block: pattern that matches the start of a block's names and captures its number.
      axes: of the kernel: the axis of the patch side and that of the input channels.
    """
    ranks = dict(zip(names, (3, 3, 4), strict=True))
    wrong = [name for name in names if name not in named or np.ndim(named[name]) != ranks[name]]
    if wrong:
        some = ", ".join(list(named)[:5]) or "nothing"
        raise InteropError(f"not the parameters of a ViT: no {', '.join(wrong)} of the right rank; found {some}, ...")
    cls, positions, kernel = (named[name] for name in names)
    width, slots = cls.shape[-1], positions.shape[1]
    side = _square_root(names[1], slots)
    if heads < 1 or width % heads:
        raise InteropError(f"heads: found {heads}, expected a divisor of the width {width}")
    depth = count_of((match[1] for name in named if (match := re.match(block, name))), len(named), "blocks")
    patch = kernel.shape[axes[0]]
    if not (width and patch and kernel.shape[axes[1]] and side):
        raise InteropError(f"not the parameters of a ViT: found {names[1]} {list(positions.shape)}, {names[2]} {list(kernel.shape)}")
    return Architecture(width, depth, heads, patch, side * patch, kernel.shape[axes[1]])


def _square_root(name: str, slots: int) -> int:
    """The side of the patch grid that a position embedding of so many slots was made for."""
    side = math.isqrt(max(slots - 1, 0))
    if side * side + 1 == slots:
        return side
    reason = ""
    if math.isqrt(slots) ** 2 == slots:
        reason = f": these are {math.isqrt(slots)} x {math.isqrt(slots)} positions without one for the cls token (as timm's no_embed_class)"
    elif math.isqrt(slots - 2) ** 2 == slots - 2:
        reason = ": two more than a square, as with a distillation token (DeiT)"
    raise InteropError(f"{name}: found {slots} slots, expected 1 (cls) + a square number{reason}")


def unstack_blocks(params: Tree) -> dict[str, Any]:
    """Replace `blocks/...` with a leading depth axis (scan) by blocks_0/..., blocks_1/...; other parameters stay as they are."""
    if "blocks" not in params:
        return dict(params)
    depth = params["blocks"]["norm1"]["scale"].shape[0]
    rest = {key: value for key, value in params.items() if key != "blocks"}
    return rest | {f"blocks_{i}": _slice(params["blocks"], i) for i in range(depth)}


def _slice(tree: Tree, i: int) -> dict[str, Any]:
    return {key: _slice(value, i) if isinstance(value, Mapping) else value[i] for key, value in tree.items()}


def stack_blocks(params: Tree) -> dict[str, Any]:
    """The inverse of `unstack_blocks`, for a ViT with `scan_blocks`."""
    blocks = sorted((key for key in params if key.startswith("blocks_")), key=lambda key: int(key.rpartition("_")[2]))
    if not blocks:
        return dict(params)
    rest = {key: value for key, value in params.items() if key not in blocks}
    return rest | {"blocks": _stack([params[key] for key in blocks])}


def _stack(trees: list[Any]) -> Any:
    first = trees[0]
    return {key: _stack([tree[key] for tree in trees]) for key in first} if isinstance(first, Mapping) else np.stack(trees)
