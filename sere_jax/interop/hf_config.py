"""The JSON files beside Hugging Face's weights: `config.json` (the network) and `preprocessor_config.json` (the images)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sere_jax.interop.files import FileError
from sere_jax.interop.tables import InteropError
from sere_jax.interop.timm import Architecture

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"

# LayerNorm's epsilon where config.json states none, by model type: the defaults of transformers.
_DEFAULT_EPS = {"vit": 1e-12, "vit_mae": 1e-12, "vit_msn": 1e-6}
_EXACT_GELU = ("gelu", "gelu_python")
_BILINEAR, _BICUBIC = 2, 3  # Pillow's numbers


class Stated(NamedTuple):
    """What `config.json` states that the tensors do not show."""

    heads: int  # 0: not stated
    norm_eps: float


class Preparation(NamedTuple):
    """How images are prepared, and the differences from what `preprocessor_config.json` asks for, as lines."""

    size: int  # pixels of the square
    resize: int  # pixels of the shorter side before the centre crop
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notes: tuple[str, ...]


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file, {} where there is none. Raises FileError where it is damaged or no dictionary."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise FileError(f"{path}: found {type(content).__name__}, expected a dictionary")
    return content


def stated(config: Mapping[str, Any], sizes: Architecture) -> Stated:
    """Check a `config.json` against the tensors' sizes, and return what the tensors do not show.

    Raises InteropError, with every mistake, where the network that it describes computes something else than ours would.
    """
    width = sizes.width
    expected = {
        "hidden_size": width,
        "num_hidden_layers": sizes.depth,
        "intermediate_size": 4 * width,
        "patch_size": sizes.patch_size,
        "num_channels": sizes.in_channels,
        "qkv_bias": True,
    }
    model_type = config.get("model_type", "vit")
    mistakes = []
    if model_type not in _DEFAULT_EPS:
        mistakes.append(f"model_type: found {model_type!r}, expected one of {', '.join(_DEFAULT_EPS)}")
    if (activation := config.get("hidden_act", "gelu")) not in _EXACT_GELU:
        mistakes.append(f"hidden_act: found {activation!r}, expected 'gelu' (the exact one), which this project's ViT computes")
    mistakes += [
        f"{key}: found {config[key]!r}, expected {value!r}" for key, value in expected.items() if key in config and config[key] != value
    ]
    heads, eps = config.get("num_attention_heads", 0), config.get("layer_norm_eps", _DEFAULT_EPS.get(model_type, 0.0))
    if not isinstance(heads, int) or heads < 0 or (heads and width % heads):
        mistakes.append(f"num_attention_heads: found {heads!r}, expected a divisor of the width {width}")
    if not isinstance(eps, int | float) or not 0 <= eps < 1:
        mistakes.append(f"layer_norm_eps: found {eps!r}, expected a number from 0 to below 1")
    if mistakes:
        raise InteropError(f"{CONFIG}: the network is another one than this project's ViT:\n" + "\n".join(f"  {line}" for line in mistakes))
    return Stated(heads, float(eps))


def preparation(content: Mapping[str, Any], image_size: int, channels: int = 3) -> Preparation:
    """Turn a `preprocessor_config.json` into a resize of the shorter side, a centre crop and a normalisation.

    A rescale factor other than 1 / 255 is folded into mean and std. What cannot be followed is told in `notes`.
    Raises InteropError where a value cannot be understood.
    """
    try:
        size, resize, notes = _sizes(content, image_size)
        scale = 255 * float(content.get("rescale_factor", 1 / 255) if content.get("do_rescale", True) else 1.0)
        mean, std = (0.0,) * channels, (1.0,) * channels
        if content.get("do_normalize", True):  # 0.5 and bilinear are the defaults of transformers' ViTImageProcessor
            mean, std = (tuple(map(float, content.get(key, (0.5,) * channels))) for key in ("image_mean", "image_std"))
        mean, std = tuple(value / scale for value in mean), tuple(value / scale for value in std)
    except (TypeError, ValueError, KeyError, ZeroDivisionError) as error:
        raise InteropError(f"{PREPROCESSOR}: cannot be understood: {type(error).__name__}: {error}") from error
    if not all(std) or not len(mean) == len(std) == channels:
        raise InteropError(f"{PREPROCESSOR}: found image_mean {mean} and image_std {std}, expected {channels} numbers each, std not 0")
    if content.get("do_resize", True) and content.get("resample", _BILINEAR) != _BICUBIC:
        notes.append("they resize with another interpolation; here it is bicubic")
    return Preparation(size, resize, mean, std, tuple(notes))


def _sizes(content: Mapping[str, Any], image_size: int) -> tuple[int, int, list[str]]:
    """(side of the crop, shorter side before it, notes)."""
    size = content.get("size", image_size)
    resized = {"height": size, "width": size} if isinstance(size, int) else dict(size)
    notes = []
    shorter = resized.get("shortest_edge") or min(resized["height"], resized["width"])
    crop = content.get("crop_size", shorter) if content.get("do_center_crop", "crop_size" in content) else shorter
    if not isinstance(crop, int):
        if crop["height"] != crop["width"]:
            notes.append(f"they crop {crop['height']} x {crop['width']} pixels; here a square is cropped")
        crop = min(crop["height"], crop["width"])
    if "shortest_edge" not in resized:
        target = f"{resized['height']} x {resized['width']}"
        notes.append(f"they resize images to {target} pixels whatever their shape; here the shorter side is resized and the middle cropped")
    return int(crop), max(int(shorter), int(crop)), notes


def configuration(sizes: Architecture) -> dict[str, Any]:
    """The `config.json` with which `transformers.ViTModel` makes the same network."""
    return {
        "architectures": ["ViTModel"],
        "model_type": "vit",
        "hidden_size": sizes.width,
        "num_hidden_layers": sizes.depth,
        "num_attention_heads": sizes.heads,
        "intermediate_size": 4 * sizes.width,
        "hidden_act": "gelu",  # transformers' name of the exact GELU
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": sizes.norm_eps,
        "image_size": sizes.image_size,
        "patch_size": sizes.patch_size,
        "num_channels": sizes.in_channels,
        "qkv_bias": True,
    }
