"""What stands beside exported tensors: the description in their header, `config.json` and the preprocessor's JSON."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

from sere_jax.interop import hf_config
from sere_jax.interop.classifier import timm_arguments
from sere_jax.interop.resnet import Sizes
from sere_jax.interop.timm import Architecture
from sere_jax.weights.beside import Preprocess
from sere_jax.weights.read import Weights

LICENCE = (
    "Weights trained with sere_jax (Apache-2.0), without any weights of the SERE authors. "
    "The training images, named by data.source in the config, have terms of their own."
)


def describe(weights: Weights, layout: str, dtype: str) -> dict[str, Any]:
    """Where the weights come from and what using them needs, as JSON values."""
    about = weights.about
    return {
        "layout": layout,
        "dtype": dtype,
        "network": about["network"],
        "step": about["step"],
        "architecture": weights.architecture._asdict(),
        "preprocess": weights.preprocess._asdict(),
        "config": about["config"],
        "imported_from": about.get("format", ""),
        "position_embedding_resized_from": about.get("resized_from", 0),
        "versions": {package: _version(package) for package in ("sere_jax", "jax", "flax", "numpy", "safetensors")},
        "licence": _licence(about),
    }


def _licence(about: dict[str, Any]) -> str:
    if about.get("licence"):
        return about["licence"]
    if about.get("format"):
        return f"Weights of others, read from {Path(about['source']).name}. Whoever trained them sets their terms."
    start = about["config"].get("init_from", "") or about.get("started_from", "")
    return LICENCE if not start else f"{LICENCE} Training started from {start}, whose terms apply too."


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # a source tree that was not installed
        return "unknown"


def configuration(weights: Weights, layout: str, description: dict[str, Any], *, with_classifier: bool) -> dict[str, Any]:
    """The content of the `config.json` of a layout: transformers' own for hf_vit, else the description with timm's arguments.

    With a classifier the names of its classes stand beside them, in the order of its outputs.
    """
    sizes = weights.architecture
    if layout == "hf_vit" and isinstance(sizes, Architecture):
        return hf_config.configuration(sizes) | {"sere_jax": description}
    timm = _timm_arguments(sizes)
    if not with_classifier:
        return description | {"timm": timm}
    arguments = timm["arguments"] | timm_arguments(weights.params)
    return description | {"timm": timm | {"arguments": arguments}, "label_names": list(weights.about["classes"])}


def _timm_arguments(sizes: Architecture | Sizes) -> dict[str, Any]:
    """The arguments with which timm's VisionTransformer or ResNet makes the same network."""
    if isinstance(sizes, Sizes):
        arguments = {"block": "timm.models.resnet.Bottleneck", "layers": sizes.stages, "in_chans": sizes.in_channels, "num_classes": 0}
        return {"class": "timm.models.resnet.ResNet", "arguments": arguments}
    return {
        "class": "timm.models.vision_transformer.VisionTransformer",
        "arguments": {
            "img_size": sizes.image_size,
            "patch_size": sizes.patch_size,
            "in_chans": sizes.in_channels,
            "embed_dim": sizes.width,
            "depth": sizes.depth,
            "num_heads": sizes.heads,
            "num_classes": 0,
        },
        "norm_layer_eps": sizes.norm_eps,  # timm's default is 1e-6
    }


def preprocessor(prepared: Preprocess) -> dict[str, Any]:
    """How images are prepared, in the terms of Hugging Face's image processor for BiT, which also crops the middle."""
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": len(prepared.mean) == 3,
        "num_channels": len(prepared.mean),
        "do_resize": True,
        "size": {"shortest_edge": prepared.resize},
        "resample": 3,  # bicubic, by Pillow's numbers
        "interpolation": prepared.interpolation,
        "do_center_crop": True,
        "crop_size": {"height": prepared.size, "width": prepared.size},
        "input_range": list(prepared.value_range) if any(prepared.value_range) else None,  # becomes the levels 0..255 before all else
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(prepared.mean),
        "image_std": list(prepared.std),
    }
