"""The `config.json` that timm writes beside weights: which network they belong to, and how its images are prepared.

Its keys are `architecture`, `model_args` (what differs from the architecture's arguments) and `pretrained_cfg` (images). Older files have
the keys of `pretrained_cfg` at the top. Other top-level keys, `num_features` and `global_pool` among them, only inform.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from sere_jax.interop import resnet
from sere_jax.interop.stated import CONFIG, Preparation, Rules, Stated, heads_of, misfits, numbers_of, refuse, same, shown, side_of
from sere_jax.interop.tables import InteropError
from sere_jax.interop.timm import NORM_EPS, Architecture

# Attention heads and width of timm's plain ViTs, by the word for their size.
SIZES = {"tiny": (3, 192), "small": (6, 384), "base": (12, 768), "large": (16, 1024), "huge": (16, 1280)}
_PLAIN_VIT = r"(?:vit|deit)_(tiny|small|base|large|huge)_patch\d+_\d+(?:_(?:in21k|dino|mae|sam))?"
_PLAIN_RESNET = r"(?:tv_|ssl_|swsl_|gluon_)?resnet\d+(?:_v1b)?"
# Architectures that compute something else with tensors that look the same: activations, LayerNorm's epsilon, pooling without weights.
_OTHERWISE = r"quickgelu|clip|rope|relpos|tanh|(?:^|_)eva|resnetaa|resnetblur|blurpool"

_HARMLESS = (
    *("num_classes", "global_pool", "drop_*", "*_rate", "weight_init", "fix_init", "pool_include_prefix", "img_size"),
    *("dynamic_img_size", "strict_img_size", "zero_init_last", "pretrained*", "scriptable", "exportable", "checkpoint_path", "cache_dir"),
)
_POOLS = ("avg", "avgmax", "max")
_MEAN, _STD, _CROP = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 0.875  # timm's defaults
# Keys of `pretrained_cfg` that change no pixel, or that `preparation` follows. The others are told.
_KNOWN = (
    *("url", "file", "hf_hub_id", "hf_hub_filename", "source", "state_dict", "architecture", "tag", "custom_load", "license"),
    *("description", "origin_url", "paper_name", "paper_ids", "notes", "num_classes", "num_features", "label_names", "label_offset"),
    *("label_descriptions", "labels", "pool_size", "test_pool_size", "first_conv", "classifier", "test_input_size", "test_crop_pct"),
    *("min_input_size", "fixed_input_size", "global_pool", "input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std"),
    *("model_args", "model_type", "pretrained_cfg"),
)


def is_timm(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is one of timm's, in any of its layouts."""
    return isinstance(config.get("architecture"), str) or isinstance(config.get("pretrained_cfg"), Mapping)


def stated(config: Mapping[str, Any], sizes: Architecture) -> Stated:
    """Check a `config.json` against the tensors of a ViT, and return what these do not show.

    The heads are those of `model_args`, else those of a plain architecture of timm. Raises InteropError, with every mistake, where the
    network computes something else than ours would, or has an argument that is not known.
    """
    name = str(config.get("architecture", ""))
    rules = _vit_rules(sizes)
    arguments = _arguments(config, rules)
    heads = arguments.pop("num_heads", None)
    mistakes = _architecture(name) + heads_of("model_args.num_heads", heads, sizes.width) + _argument_mistakes(arguments, rules)
    refuse(mistakes)
    plain = re.fullmatch(_PLAIN_VIT, name)
    usual_heads, usual_width = SIZES[plain[1]] if plain else (0, 0)
    notes = (
        [] if plain or not name else [f"assumed      exact GELU and LayerNorm epsilon {NORM_EPS:g}: the architecture {name!r} is not known"]
    )
    pool = arguments.get("global_pool", config.get("global_pool"))
    if pool in _POOLS:
        notes.append(f"features     timm pools the patch tokens of this network ({pool}); here cls is the token after the final norm")
    side = arguments.get("img_size")
    if side is not None and not any(same(side, own) for own in _square(sizes.image_size)):
        notes.append(
            f"positions    stored for {sizes.image_size} pixels, where model_args.img_size is {shown(side)}; resized by DINO's rule"
        )
    return Stated(heads or (usual_heads if usual_width == sizes.width else 0), NORM_EPS, tuple(notes))


def check_resnet(config: Mapping[str, Any], sizes: resnet.Sizes) -> list[str]:
    """Check a `config.json` against the tensors of a ResNet; lines on what was assumed. Raises InteropError as `stated` does."""
    name = str(config.get("architecture", ""))
    rules = _resnet_rules(sizes)
    refuse(_architecture(name) + _argument_mistakes(_arguments(config, rules), rules))
    known = not name or re.fullmatch(_PLAIN_RESNET, name)
    return [] if known else [f"assumed      a plain ResNet: the architecture {name!r} is not known"]


def _architecture(name: str) -> list[str]:
    if not re.search(_OTHERWISE, name):
        return []
    return [f"architecture: found {name!r}, which computes something else than a plain ViT (exact GELU, epsilon {NORM_EPS:g}) or ResNet"]


def _arguments(config: Mapping[str, Any], rules: Rules) -> dict[str, Any]:
    """`model_args`, and what stands at the top of older files under the same names."""
    arguments = config.get("model_args") or {}
    if not isinstance(arguments, Mapping):
        raise InteropError(f"{CONFIG}: model_args: found {shown(arguments)}, expected a dictionary")
    return {key: value for key, value in config.items() if key in rules or key == "num_heads"} | dict(arguments)


def _argument_mistakes(arguments: Mapping[str, Any], rules: Rules) -> list[str]:
    return [f"model_args.{line}" for line in misfits(arguments, rules, _HARMLESS)]


def _square(side: int) -> tuple[Any, ...]:
    return side, [side, side]


def _vit_rules(sizes: Architecture) -> Rules:
    """The arguments of timm's VisionTransformer with which it computes what ours does."""
    off = dict.fromkeys(
        ("qk_norm", "scale_attn_norm", "scale_mlp_norm", "no_embed_class", "pre_norm", "fc_norm", "dynamic_img_pad"), (False,)
    )
    on = dict.fromkeys(("qkv_bias", "proj_bias", "class_token", "final_norm"), (True,))
    return {
        **off,
        **on,
        "embed_dim": (sizes.width,),
        "depth": (sizes.depth,),
        "patch_size": _square(sizes.patch_size),
        "in_chans": (sizes.in_channels,),
        "mlp_ratio": (4,),
        "reg_tokens": (0,),
        "init_values": (0,),  # layer scale
        "pos_embed": ("learn",),
        "norm_layer": ("layernorm", "LayerNorm", "layer_norm"),
        "act_layer": ("gelu", "GELU"),
    }


def _resnet_rules(sizes: resnet.Sizes) -> Rules:
    """The arguments of timm's ResNet with which it computes what ours does."""
    return {
        "layers": (list(sizes.stages),),
        "in_chans": (sizes.in_channels,),
        "block": ("bottleneck", "Bottleneck"),
        "output_stride": (32,),
        "cardinality": (1,),
        "base_width": (64,),
        "stem_width": (sizes.width,),
        "stem_type": ("",),
        "replace_stem_pool": (False,),
        "avg_down": (False,),
        "block_reduce_first": (1,),
        "down_kernel_size": (1,),
        "aa_layer": ("",),
        "act_layer": ("relu", "ReLU"),
        "norm_layer": ("batchnorm2d", "batchnorm", "BatchNorm2d"),
    }


def preparation(config: Mapping[str, Any], image_size: int, channels: int) -> Preparation:
    """How timm prepares images for evaluation, in our terms: the shorter side has floor(size / crop_pct) pixels.

    Another interpolation and another way to crop than the centre are told in `notes`. Raises InteropError where a value cannot be
    understood.
    """
    images = (config["pretrained_cfg"] or {}) if "pretrained_cfg" in config else config
    try:
        if not isinstance(images, Mapping):
            raise ValueError(f"found {shown(images)}, expected a dictionary")
        images = {key: value for key, value in images.items() if value is not None}  # null: the default
        side, notes = _side(images, config, image_size, channels)
        (crop,) = numbers_of(images.get("crop_pct", _CROP), 1, "crop_pct")
        defaults = (_MEAN, _STD) if channels == len(_MEAN) else (0.5, 0.5)
        mean, std = (numbers_of(images.get(key, default), channels, key) for key, default in zip(("mean", "std"), defaults, strict=True))
        if crop <= 0 or min(std) <= 0:
            raise ValueError(f"found crop_pct {crop:g} and std {list(std)}, expected numbers above 0")
    except (TypeError, ValueError) as error:
        raise InteropError(f"{CONFIG}: pretrained_cfg: cannot be understood: {error}") from error
    if (interpolation := images.get("interpolation", "bicubic")) != "bicubic":
        notes.append(f"they resize with another interpolation ({shown(interpolation)}); here it is bicubic")
    if (mode := images.get("crop_mode", "center")) != "center":
        notes.append(f"they crop by {shown(mode)}; here the shorter side is resized and the middle cropped")
    if "pretrained_cfg" in config:
        notes += [f"not followed: {key}={shown(value)}" for key, value in images.items() if key not in _KNOWN]
    return Preparation(side, max(math.floor(side / crop), side), mean, std, tuple(notes))


def _side(images: Mapping[str, Any], config: Mapping[str, Any], image_size: int, channels: int) -> tuple[int, list[str]]:
    """The side of the square, and notes. A fixed size that `model_args` states wins, as in timm."""
    size = images.get("input_size", [channels, image_size, image_size])
    if not isinstance(size, list | tuple) or len(size) != 3 or not same(size[0], channels):
        raise ValueError(f"input_size: found {shown(size)}, expected [{channels}, height, width]")
    stated_size = (config.get("model_args") or {}).get("img_size")
    if images.get("fixed_input_size") and stated_size is not None:
        size = [channels, *(stated_size if isinstance(stated_size, list | tuple) else (stated_size, stated_size))]
    height, width = (side_of(value, "input_size") for value in size[1:])
    notes = [f"they take images of {height} x {width} pixels; here they are square"] if height != width else []
    return min(height, width), notes
