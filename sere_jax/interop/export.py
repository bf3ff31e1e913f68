"""Export weights: python -m sere_jax.interop.export --checkpoint=DIR --format=timm --network=teacher --output=FILE.safetensors

Beside FILE come FILE's name with `.config.json` (architecture, timm's arguments, the training config) and with
`.preprocessor.json` (sizes, mean, std, interpolation). The tensors' file holds the same in its metadata and says where the
weights come from. No PyTorch is needed, and a checkpoint of any number of devices will do. Exit code 2: it could not be done.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from sere_jax.backbone import Preprocess, Weights, read_weights
from sere_jax.checkpoint import CheckpointError
from sere_jax.interop.dino import to_dino
from sere_jax.interop.files import FileError, write_json, write_tensors
from sere_jax.interop.tables import InteropError, flatten
from sere_jax.interop.timm import Architecture, to_timm

FORMATS = ("timm", "dino", "npz")
DTYPES = ("float32", "bfloat16", "float16")

LICENCE = (
    "Weights trained with sere_jax (Apache-2.0), with no weights of the SERE authors in them. "
    "The terms of the training images, named by data.source in the config, are theirs."
)


class Exported(NamedTuple):
    """What was written."""

    tensors: Path
    config: Path
    preprocessor: Path
    numbers: int  # of all tensors together


def export(
    checkpoint: str | Path,
    output: str | Path,
    *,
    layout: str = "timm",
    network: str = "",
    step: int | None = None,
    with_heads: bool = False,
    dtype: str = "float32",
) -> Exported:
    """Write one network of a checkpoint for others to use.

    Args:
      checkpoint: whatever `load_backbone` reads.
      output: FILE.safetensors for the layouts timm and dino, FILE.npz for npz.
      layout: timm (the backbone by timm's names), dino (`backbone.*`, `head.*`), npz (our own names and shapes).
      network: teacher | student; "": the one that the recipe evaluates.
      with_heads: with the heads: DINO's own for dino, all of them for npz.

    Raises CheckpointError, FileError and InteropError, as `load_backbone` does; InteropError on arguments that do not fit.
    """
    output = Path(output).expanduser()
    _check(output, layout, with_heads, dtype)
    weights = read_weights(checkpoint, network=network, step=step)
    tensors = {name: tensor.astype(jnp.dtype(dtype)) for name, tensor in _tensors(weights, layout, with_heads).items()}
    described = _description(weights, layout, dtype)
    write_tensors(output, tensors, described)
    config, preprocessor = output.with_suffix(".config.json"), output.with_suffix(".preprocessor.json")
    write_json(config, described | {"timm": _timm_arguments(weights.architecture)})
    write_json(preprocessor, _preprocessor(weights.preprocess))
    return Exported(output, config, preprocessor, sum(tensor.size for tensor in tensors.values()))


def _check(output: Path, layout: str, with_heads: bool, dtype: str) -> None:
    ending = ".npz" if layout == "npz" else ".safetensors"
    mistakes = [
        f"{name}: found {value!r}, expected one of {', '.join(choices)}"
        for name, value, choices in (("format", layout, FORMATS), ("dtype", dtype, DTYPES))
        if value not in choices
    ]
    if output.suffix != ending:
        mistakes.append(f"output: found {output.name!r}, expected a name that ends in {ending} for the format {layout}")
    if with_heads and layout == "timm":
        mistakes.append("with_heads: the timm layout has no heads, expected the format dino or npz")
    if mistakes:
        raise InteropError("\n".join(mistakes))


def _tensors(weights: Weights, layout: str, with_heads: bool) -> dict[str, np.ndarray]:
    if layout == "timm":
        return to_timm(weights.params["backbone"])
    if layout == "dino":
        return to_dino(weights.params, with_heads=with_heads)
    return flatten(weights.params if with_heads else {"backbone": weights.params["backbone"]})


def _description(weights: Weights, layout: str, dtype: str) -> dict[str, Any]:
    return {
        "layout": layout,
        "dtype": dtype,
        "network": weights.about["network"],
        "step": weights.about["step"],
        "architecture": weights.architecture._asdict(),
        "preprocess": weights.preprocess._asdict(),
        "config": weights.about["config"],
        "versions": {package: _version(package) for package in ("sere_jax", "jax", "flax", "numpy", "safetensors")},
        "licence": LICENCE,
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # a source tree that was not installed
        return "unknown"


def _timm_arguments(sizes: Architecture) -> dict[str, Any]:
    """Arguments of timm.models.vision_transformer.VisionTransformer that make the same network."""
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
    }


def _preprocessor(prepared: Preprocess) -> dict[str, Any]:
    """In the terms of Hugging Face's image processors."""
    return {
        "do_resize": True,
        "size": {"shortest_edge": prepared.resize},
        "resample": 3,  # bicubic, by Pillow's numbers
        "interpolation": prepared.interpolation,
        "do_center_crop": True,
        "crop_size": {"height": prepared.size, "width": prepared.size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(prepared.mean),
        "image_std": list(prepared.std),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The program; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m sere_jax.interop.export", description="Export the weights of a checkpoint.")
    parser.add_argument("--checkpoint", required=True, help="workdir, its checkpoints directory, one step in it, or an exported file")
    parser.add_argument("--output", required=True, help="FILE.safetensors, or FILE.npz for --format=npz")
    parser.add_argument("--format", default="timm", choices=FORMATS)
    parser.add_argument("--network", default="", choices=("teacher", "student"), help="default: the one that the recipe evaluates")
    parser.add_argument("--step", type=int, help="default: the newest")
    parser.add_argument("--with_heads", action="store_true", help="with the heads (dino: DINO's own; npz: all)")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    given = parser.parse_args(argv)
    try:
        written = export(
            given.checkpoint,
            given.output,
            layout=given.format,
            network=given.network,
            step=given.step,
            with_heads=given.with_heads,
            dtype=given.dtype,
        )
    except (CheckpointError, FileError, InteropError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 2
    print(f"{written.tensors}: {written.numbers:,} numbers in {given.dtype}, format {given.format}")
    print(f"{written.config}\n{written.preprocessor}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
