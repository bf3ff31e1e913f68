"""A ResNet's parameters and running statistics under torchvision's names, which are also timm's and those of DINO and MoCo v3.

Ours mirror them: `layer1_0/conv1/kernel`, `layer1_0/bn1/scale`, `layer1_0/downsample_conv/kernel`, `layer1_0/downsample_bn/scale`;
running statistics have the same paths with `mean` and `var`. Bottleneck blocks, as ResNet-50's; the classifier is not ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from sere_jax.interop.tables import InteropError, Line, Tensors, Tree, count_of, to_ours, to_theirs
from sere_jax.interop.timm import to_timm

EXPECTED_LEFT = ("fc.weight", "fc.bias", "*.num_batches_tracked")
_EXPANSION = 4  # a bottleneck block's output channels to its inner ones


class Sizes(NamedTuple):
    """What tells the shapes; ResNet-50 is the default."""

    width: int = 64  # channels of the stem
    stages: tuple[int, ...] = (3, 4, 6, 3)  # blocks
    in_channels: int = 3
    image_size: int = 224  # pixels that it was trained on; nothing in the tensors tells


def lines(sizes: Sizes = Sizes()) -> list[Line]:  # noqa: B008  (immutable)
    """The table: our paths begin with `params/` or `batch_stats/`."""
    table = [Line("params/conv1/kernel", "conv1.weight", (7, 7, sizes.in_channels, sizes.width), "conv")]
    table += _norm("bn1", "bn1", sizes.width)
    inputs = sizes.width
    for stage, blocks in enumerate(sizes.stages):
        inner = sizes.width * 2**stage
        for block in range(blocks):
            table += _block(f"layer{stage + 1}_{block}", f"layer{stage + 1}.{block}", inputs, inner, downsample=block == 0)
            inputs = inner * _EXPANSION
    return table


def _block(ours: str, theirs: str, inputs: int, inner: int, *, downsample: bool) -> list[Line]:
    outputs = inner * _EXPANSION
    table = []
    for i, (side, before, after) in enumerate(((1, inputs, inner), (3, inner, inner), (1, inner, outputs)), 1):
        table.append(Line(f"params/{ours}/conv{i}/kernel", f"{theirs}.conv{i}.weight", (side, side, before, after), "conv"))
        table += _norm(f"{ours}/bn{i}", f"{theirs}.bn{i}", after)
    if downsample:
        table.append(Line(f"params/{ours}/downsample_conv/kernel", f"{theirs}.downsample.0.weight", (1, 1, inputs, outputs), "conv"))
        table += _norm(f"{ours}/downsample_bn", f"{theirs}.downsample.1", outputs)
    return table


def _norm(ours: str, theirs: str, d: int) -> list[Line]:
    return [
        Line(f"params/{ours}/scale", f"{theirs}.weight", (d,)),
        Line(f"params/{ours}/bias", f"{theirs}.bias", (d,)),
        Line(f"batch_stats/{ours}/mean", f"{theirs}.running_mean", (d,)),
        Line(f"batch_stats/{ours}/var", f"{theirs}.running_var", (d,)),
    ]


def is_resnet(names: Iterable[str]) -> bool:
    """Whether names are those of a ResNet with bottleneck blocks."""
    return {"conv1.weight", "layer1.0.conv3.weight"} <= set(names)


def to_resnet(params: Tree, batch_stats: Tree) -> dict[str, np.ndarray]:
    """A backbone's parameters and running statistics -> tensors by torchvision's names, without a classifier.

    Raises InteropError with all parameters that are missing, unknown or of another shape.
    """
    table = lines(sizes_of_params(params))
    tensors = to_theirs({"params": params, "batch_stats": batch_stats}, table)
    norms = [line.theirs.removesuffix("running_mean") for line in table if line.theirs.endswith("running_mean")]
    return tensors | {f"{norm}num_batches_tracked": np.zeros((), np.int64) for norm in norms}


def from_resnet(tensors: Tensors, *, ignore: Iterable[str] = ()) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors by torchvision's names -> a backbone's (parameters, running statistics). The classifier is left.

    Raises InteropError with all names that are missing, left over or of another shape.
    """
    tree = to_ours(tensors, lines(sizes_of(tensors)), ignore=(*EXPECTED_LEFT, *ignore))
    return tree["params"], tree["batch_stats"]


def sizes_of(tensors: Tensors) -> Sizes:
    """Sizes read off tensors by torchvision's names. Raises InteropError where they are not those of a ResNet."""
    kernel = tensors.get("conv1.weight")
    if kernel is None or kernel.ndim != 4:
        raise InteropError(f"not a ResNet: no conv1.weight of rank 4; found {', '.join(list(tensors)[:5]) or 'nothing'}, ...")
    return Sizes(kernel.shape[0], _stages(tensors, r"layer(\d+)\.(\d+)\."), kernel.shape[1])


def sizes_of_params(params: Tree, image_size: int = 224) -> Sizes:
    """Sizes read off our own parameters. Raises InteropError where they are not those of a ResNet."""
    kernel = params.get("conv1", {}).get("kernel")
    if kernel is None or np.ndim(kernel) != 4:
        raise InteropError(f"not the parameters of a ResNet: no conv1/kernel of rank 4; found {', '.join(params) or 'nothing'}")
    return Sizes(kernel.shape[3], _stages(params, r"layer(\d+)_(\d+)$"), kernel.shape[2], image_size)


def _stages(names: Iterable[str], block: str) -> tuple[int, ...]:
    names = list(names)
    found = [match.groups() for name in names if (match := re.match(block, name))]
    blocks = [0] * count_of((stage for stage, _ in found), len(names), "stages")
    for stage, number in found:
        blocks[int(stage)] = max(blocks[int(stage)], count_of([number], len(names), "blocks"))
    return tuple(blocks[1:])


def to_their_names(backbone: Tree, batch_stats: Tree) -> dict[str, np.ndarray]:
    """A ViT's parameters by timm's names or a ResNet's by torchvision's; `batch_stats` are those of the whole network."""
    return to_resnet(backbone, batch_stats.get("backbone", {})) if "conv1" in backbone else to_timm(backbone)
