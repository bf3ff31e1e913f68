"""The JSON files beside Hugging Face's weights: `config.json` (the network) and `preprocessor_config.json` (the images)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sere_jax.interop.stated import PREPROCESSOR, Preparation, Rules, Stated, heads_of, misfits, numbers_of, refuse, shown, side_of
from sere_jax.interop.tables import InteropError, matches
from sere_jax.interop.timm import Architecture

# LayerNorm's epsilon where config.json states none, by model type: the defaults of transformers.
_DEFAULT_EPS = {"vit": 1e-12, "vit_mae": 1e-12, "vit_msn": 1e-6}
_BICUBIC = (3, "bicubic", "BICUBIC", "PIL.Image.BICUBIC")  # Pillow's number, and how people spell it

# Keys of config.json that do not change the features of a trained network: names, training, classifier, decoder, text generation.
_HARMLESS = (
    *("_*", "architectures", "model_type", "transformers_version", "license", "sere_jax", "image_processor_type", "tokenizer_class"),
    *("dtype", "torch_dtype", "torchscript", "use_bfloat16", "use_cache", "return_dict*", "output_*", "gradient_checkpointing"),
    *("chunk_size_feed_forward", "tf_legacy_loss", "tie_word_embeddings", "cross_attention_hidden_size", "prefix", "task_specific_params"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate", "classifier_dropout*", "initializer_range"),
    *("encoder_stride", "pooler_*", "use_mask_token", "mask_ratio", "norm_pix_loss", "decoder_*"),
    *("id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "*_token_id", "*_length", "*length_penalty"),
    *("do_sample", "early_stopping", "num_beam*", "diversity_penalty", "temperature", "top_[kp]", "typical_p", "repetition_penalty"),
    *("*no_repeat_ngram_size", "bad_words_ids", "num_return_sequences", "remove_invalid_values", "*suppress_tokens"),
)
# Keys of preprocessor_config.json that change no pixel, or that `preparation` follows.
_KNOWN = (
    *("_*", "image_processor_type", "feature_extractor_type", "processor_class", "num_channels", "data_format", "input_data_format"),
    *("return_tensors", "device", "interpolation", "default_to_square", "do_reduce_labels", "do_convert_rgb"),
    *("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor", "rescale_offset"),
    *("do_normalize", "image_mean", "image_std"),
)


def stated(config: Mapping[str, Any], sizes: Architecture) -> Stated:
    """Check a `config.json` against the tensors' sizes, and return what the tensors do not show.

    Raises InteropError, with every mistake, where the network that it describes computes something else than ours would, or where a
    key is not known and may say so.
    """
    model_type = config.get("model_type", "vit")
    mistakes = []
    if model_type not in _DEFAULT_EPS:
        mistakes.append(f"model_type: found {shown(model_type)}, expected one of {', '.join(_DEFAULT_EPS)}")
    settings = {key: value for key, value in config.items() if key not in ("num_attention_heads", "layer_norm_eps")}
    mistakes += misfits(settings, _rules(sizes), _HARMLESS)
    heads, eps = config.get("num_attention_heads"), config.get("layer_norm_eps")
    mistakes += heads_of("num_attention_heads", heads, sizes.width)
    eps = _DEFAULT_EPS.get(model_type, 0.0) if eps is None else eps
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 <= eps < 1:
        mistakes.append(f"layer_norm_eps: found {shown(eps)}, expected a number from 0 to below 1")
    refuse(mistakes)
    return Stated(heads or 0, float(eps))


def _rules(sizes: Architecture) -> Rules:
    """The values of keys, transformers' and those of its other ViTs, with which the network is ours."""
    patch, image = sizes.patch_size, sizes.image_size
    return {
        "hidden_act": ("gelu", "gelu_python"),  # transformers' names of the exact GELU
        "hidden_size": (sizes.width,),
        "num_hidden_layers": (sizes.depth,),
        "intermediate_size": (4 * sizes.width,),
        "mlp_ratio": (4,),
        "patch_size": (patch, [patch, patch]),
        "patch_stride": (patch, [patch, patch]),
        "image_size": (image, [image, image]),
        "num_channels": (sizes.in_channels,),
        "qkv_bias": (True,),
        "attention_bias": (True,),
        "mlp_bias": (True,),
        "apply_layernorm": (True,),
        "use_absolute_position_embeddings": (True,),
        "position_embedding_type": ("absolute",),
        "use_relative_position_bias": (False,),
        "use_shared_relative_position_bias": (False,),
        "num_register_tokens": (0,),
        "use_swiglu_ffn": (False,),
        "use_qk_norm": (False,),
        "pruned_heads": ({},),
        "is_decoder": (False,),
        "is_encoder_decoder": (False,),
        "add_cross_attention": (False,),
    }


def preparation(content: Mapping[str, Any], image_size: int, channels: int = 3) -> Preparation:
    """Turn a `preprocessor_config.json` into a resize of the shorter side, a centre crop and a normalisation.

    A rescale factor other than 1 / 255 is folded into mean and std. What cannot be followed and changes sizes alone is told in `notes`.
    Raises InteropError where a value cannot be understood, and for steps that change the pixels, such as another order of channels.
    """
    content = {key: value for key, value in content.items() if value is not None}  # null: the default
    unknown = {key: value for key, value in content.items() if not matches(key, _KNOWN)}
    steps = [key for key in unknown if key.startswith("do_") and unknown[key]] + ["rescale_offset"] * bool(content.get("rescale_offset"))
    if steps:
        raise InteropError(f"{PREPROCESSOR}: found {', '.join(f'{key}=true' for key in steps)}, expected false: the step is not done here")
    try:
        size, resize, notes = _sizes(content, image_size)
        mean, std = _normalisation(content, channels)
    except (TypeError, ValueError, KeyError) as error:
        raise InteropError(f"{PREPROCESSOR}: cannot be understood: {type(error).__name__}: {error}") from error
    if content.get("do_resize", True) and content.get("resample", 2) not in _BICUBIC:  # 2, bilinear, is transformers' default for ViTs
        notes.append("they resize with another interpolation; here it is bicubic")
    notes += [f"not followed: {key}={shown(value)}" for key, value in unknown.items() if not key.startswith("do_")]
    return Preparation(size, resize, mean, std, tuple(notes))


def _normalisation(content: Mapping[str, Any], channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of pixels from 0 to 1. Raises ValueError for a std or a rescale factor that is not above 0."""
    (factor,) = numbers_of(content.get("rescale_factor", 1 / 255), 1, "rescale_factor") if content.get("do_rescale", True) else (1.0,)
    mean, std = (0.0,) * channels, (1.0,) * channels
    if content.get("do_normalize", True):  # 0.5 is the default of transformers' ViTImageProcessor
        mean, std = (numbers_of(content.get(key, 0.5), channels, key) for key in ("image_mean", "image_std"))
    if factor <= 0 or min(std) <= 0:
        raise ValueError(f"found rescale_factor {factor:g} and image_std {list(std)}, expected numbers above 0")
    scale = 255 * factor
    return tuple(value / scale for value in mean), tuple(value / scale for value in std)


def _sizes(content: Mapping[str, Any], image_size: int) -> tuple[int, int, list[str]]:
    """(side of the crop, shorter side before it, notes)."""
    if not content.get("do_resize", True):
        crop, notes = _crop(content, image_size)
        return crop, crop, [*notes, f"they do not resize images; here the shorter side is resized to {crop} pixels"]
    size = content.get("size", image_size)
    if isinstance(size, list | tuple):
        height, width = size
        size = {"height": height, "width": width}
    edges = size if isinstance(size, dict) else {"height": size, "width": size}
    if "shortest_edge" in edges:
        shorter = side_of(edges["shortest_edge"], "size.shortest_edge")
        crop, notes = _crop(content, shorter)
        if "longest_edge" in edges:
            notes.append(f"they bound the longer side to {shown(edges['longest_edge'])} pixels; here it is not bounded")
    else:
        height, width = (side_of(edges[name], f"size.{name}") for name in ("height", "width"))
        shorter = min(height, width)
        crop, notes = _crop(content, shorter)
        target = f"{height} x {width} pixels whatever their shape"
        notes.append(f"they resize images to {target}; here the shorter side is resized and the middle cropped")
    if crop > shorter:
        notes.append(f"they crop {crop} pixels from {shorter}, with a black border; here the shorter side is resized to {crop}")
    return crop, max(shorter, crop), notes


def _crop(content: Mapping[str, Any], shorter: int) -> tuple[int, list[str]]:
    """(side of the centre crop, notes); `shorter` where nothing is cropped."""
    if not content.get("do_center_crop", "crop_size" in content):
        return shorter, []
    crop = content.get("crop_size", shorter)
    if not isinstance(crop, dict):
        return side_of(crop, "crop_size"), []
    height, width = (side_of(crop[name], f"crop_size.{name}") for name in ("height", "width"))
    notes = [f"they crop {height} x {width} pixels; here a square is cropped"] if height != width else []
    return min(height, width), notes


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
