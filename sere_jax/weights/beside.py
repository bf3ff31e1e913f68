"""What a file of weights, or the JSON files beside it, state: the sizes of the network, and how its images are prepared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sere_jax.data.images.reading import BY_TYPE, ValueRange
from sere_jax.interop import formats, hf_config, resnet, timm
from sere_jax.interop.stated import CONFIG, PREPROCESSOR, Stated, read_json
from sere_jax.interop.tables import InteropError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Preprocess(NamedTuple):
    """How images are prepared: shorter side to `resize` pixels, centre crop of `size`, (pixel / 255 - mean) / std."""

    size: int
    resize: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bicubic"
    value_range: ValueRange = BY_TYPE  # of arrays and TIFF bands: values that become the levels 0 and 255


def sizes_of_file(
    path: Path, imported: formats.Imported, metadata: Mapping[str, Any], heads: int
) -> tuple[timm.Architecture | resnet.Sizes, list[str]]:
    """The sizes of a file's network, with what its metadata or the JSON files beside it state; lines on what was assumed."""
    params, recorded = imported.params["backbone"], metadata.get("architecture", {})
    if "conv1" in params:
        check_heads(heads, 0, "since a ResNet has no attention")
        return resnet.sizes_of_params(params, recorded.get("image_size", 224)), []
    sizes = timm.architecture_of_params(params)
    stated = Stated(recorded.get("heads", 0), recorded.get("norm_eps", timm.NORM_EPS))
    notes = []
    if imported.format == "hf_vit":
        config = read_json(path.parent / CONFIG)
        if config or not recorded:
            stated = hf_config.stated(config, sizes)
        if not config and not recorded:
            notes.append(f"assumed      LayerNorm epsilon {stated.norm_eps:g}, transformers' default: no {CONFIG} is beside it")
    if stated.heads:
        check_heads(heads, stated.heads, "which the file states")
    elif imported.heads:
        check_heads(heads, imported.heads, f"as the ViTs of {formats.TITLES[imported.format]} have")
    elif not heads:
        raise InteropError(
            "heads: unknown, since tensors do not show it; expected heads=N. "
            f"timm's, DINO's and iBOT's ViTs of width {sizes.width} have {max(sizes.width // 64, 1)}, MoCo v3's ViT-S has 12"
        )
    number = stated.heads or imported.heads or heads
    if sizes.width % number:
        raise InteropError(f"heads: found {number}, expected a divisor of the width {sizes.width}")
    return sizes._replace(heads=number, norm_eps=stated.norm_eps), notes


def check_heads(found: int, expected: int, reason: str) -> None:
    """Raise InteropError where the caller states attention heads, `found`, other than the `expected` ones; 0 states none."""
    if found not in (0, expected):
        raise InteropError(f"heads: found {found}, expected {expected}, {reason}")


def preprocess_of_file(
    path: Path, imported: formats.Imported, metadata: Mapping[str, Any], sizes: timm.Architecture | resnet.Sizes
) -> tuple[Preprocess, list[str]]:
    """How a file's images are prepared: as its metadata says, else the JSON beside it, else as ImageNet's models are evaluated."""
    saved = metadata.get("preprocess")
    if saved:
        value_range = tuple(saved.get("value_range", BY_TYPE))
        mean, std = tuple(saved["mean"]), tuple(saved["std"])
        return Preprocess(saved["size"], saved["resize"], mean, std, saved["interpolation"], value_range), []
    size, channels = sizes.image_size, sizes.in_channels
    content = read_json(path.parent / PREPROCESSOR) if imported.format == "hf_vit" else {}
    if content:
        asked = hf_config.preparation(content, size, channels)
        lines = [f"images       {note}" for note in asked.notes]
        if (asked.mean, asked.std) != (IMAGENET_MEAN, IMAGENET_STD):
            lines.append(f"images       normalised with mean {_numbers(asked.mean)}, std {_numbers(asked.std)}")
        return Preprocess(asked.size, asked.resize, asked.mean, asked.std), lines
    if channels == len(IMAGENET_MEAN):
        return Preprocess(size, size * 256 // 224), []
    half = (0.5,) * channels
    return Preprocess(size, size * 256 // 224, half, half), [f"assumed      mean and std 0.5 of each of the {channels} channels"]


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)
