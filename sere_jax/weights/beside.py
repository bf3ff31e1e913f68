"""What a file of weights, or the JSON files beside it, state: the sizes of the network, and how its images are prepared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from sere_jax.buckets import Location
from sere_jax.data.images.reading import BY_TYPE, ValueRange
from sere_jax.interop import formats, hf_config, resnet, timm, timm_config, training_args
from sere_jax.interop.stated import CONFIG, PREPROCESSOR, Preparation, Stated, read_json
from sere_jax.interop.tables import InteropError
from sere_jax.interop.torch_file import ARGUMENTS

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
    path: Location, imported: formats.Imported, metadata: Mapping[str, Any], heads: int
) -> tuple[timm.Architecture | resnet.Sizes, list[str]]:
    """The sizes of a file's network, with what its metadata or the JSON files beside it state; lines on what was assumed."""
    params, recorded = imported.params["backbone"], metadata.get("architecture", {})
    if "conv1" in params:
        check_heads(heads, 0, "since a ResNet has no attention")
        layout = resnet.sizes_of_params(params, recorded.get("image_size", 224))
        config = {} if recorded else _timm_config(path, imported)
        return layout, timm_config.check_resnet(config, layout) if config else []
    sizes = timm.architecture_of_params(params)
    stated = _stated(path, imported, recorded, sizes)
    if not recorded and not stated.heads and (arguments := metadata.get(ARGUMENTS)):
        told = training_args.stated(arguments, imported.format, imported.heads, sizes)
        stated, imported = told._replace(norm_eps=stated.norm_eps, notes=(*stated.notes, *told.notes)), imported._replace(heads=0)
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
    return sizes._replace(heads=number, norm_eps=stated.norm_eps), list(stated.notes)


def _stated(path: Location, imported: formats.Imported, recorded: Mapping[str, Any], sizes: timm.Architecture) -> Stated:
    """What a ViT's own metadata state, else the JSON file beside it."""
    if imported.format == "hf_vit":
        config = read_json(path.parent / CONFIG)
        if config or not recorded:
            stated = hf_config.stated(config, sizes)
            note = f"assumed      LayerNorm epsilon {stated.norm_eps:g}, transformers' default: no {CONFIG} is beside it"
            return stated if config else stated._replace(notes=(note,))
    elif not recorded and (config := _timm_config(path, imported)):
        return timm_config.stated(config, sizes)
    return Stated(recorded.get("heads", 0), recorded.get("norm_eps", timm.NORM_EPS))


def _timm_config(path: Location, imported: formats.Imported) -> dict[str, Any]:
    """The `config.json` of timm beside a file with timm's names; {} where there is none, or another program's."""
    config = read_json(path.parent / CONFIG) if imported.format in ("timm", "resnet50") else {}
    return config if timm_config.is_timm(config) else {}


def check_heads(found: int, expected: int, reason: str) -> None:
    """Raise InteropError where the caller states attention heads, `found`, other than the `expected` ones; 0 states none."""
    if found not in (0, expected):
        raise InteropError(f"heads: found {found}, expected {expected}, {reason}")


def preprocess_of_file(
    path: Location, imported: formats.Imported, metadata: Mapping[str, Any], sizes: timm.Architecture | resnet.Sizes
) -> tuple[Preprocess, list[str]]:
    """How a file's images are prepared: as its metadata says, else the JSON beside it, else as ImageNet's models are evaluated."""
    saved = metadata.get("preprocess")
    if saved:
        value_range = tuple(saved.get("value_range", BY_TYPE))
        mean, std = tuple(saved["mean"]), tuple(saved["std"])
        if not len(mean) == len(std) == sizes.in_channels:
            raise InteropError(
                f"preprocess: found {len(mean)} means and {len(std)} stds, expected one for each of {sizes.in_channels} channels"
            )
        return Preprocess(saved["size"], saved["resize"], mean, std, saved["interpolation"], value_range), []
    asked, beside = _asked(path, imported, sizes)
    if asked:
        lines = [f"images       {note}" for note in asked.notes]
        if (asked.mean, asked.std) != (IMAGENET_MEAN, IMAGENET_STD):
            lines.append(f"images       normalised with mean {_numbers(asked.mean)}, std {_numbers(asked.std)}")
        return Preprocess(asked.size, asked.resize, asked.mean, asked.std), lines
    size, channels = sizes.image_size, sizes.in_channels
    reason = f"no {beside} that states others is beside it" if beside else "the file states no others"
    if channels == len(IMAGENET_MEAN):
        return Preprocess(size, size * 256 // 224), [f"assumed      ImageNet's mean and std: {reason}"]
    half = (0.5,) * channels
    return Preprocess(size, size * 256 // 224, half, half), [f"assumed      mean and std 0.5 of each of the {channels} channels: {reason}"]


def _asked(path: Location, imported: formats.Imported, sizes: timm.Architecture | resnet.Sizes) -> tuple[Preparation | None, str]:
    """The preparation that the JSON file beside the weights asks for, and that file's name; None where there is none."""
    size, channels = sizes.image_size, sizes.in_channels
    if imported.format == "hf_vit":
        content = read_json(path.parent / PREPROCESSOR)
        return hf_config.preparation(content, size, channels) if content else None, PREPROCESSOR
    config = _timm_config(path, imported)
    name = CONFIG if imported.format in ("timm", "resnet50") else ""
    return timm_config.preparation(config, size, channels) if config else None, name


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)
