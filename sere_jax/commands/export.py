"""Export weights: python -m sere_jax export --checkpoint=X --format=timm --network=teacher --output=FILE.safetensors

X is a run's workdir or anything else that `load_backbone` reads, so that this also turns one format into another. Beside FILE
come FILE's name with `.config.json` (architecture, timm's arguments, the training config, where the weights come from) and with
`.preprocessor.json` (sizes, mean, std, interpolation). The format hf_vit takes a directory: `transformers` reads it.
docs/weights.md has the table. PyTorch is needed for `.pth` alone, an accelerator never, and a checkpoint of any number of devices
will do. Exit code 2: it could not be done.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax.numpy as jnp
import numpy as np

from sere_jax.interop import hf
from sere_jax.interop.dino import Layout, to_dino
from sere_jax.interop.files import FileError, write_json, write_tensors
from sere_jax.interop.relation import MODULES
from sere_jax.interop.resnet import Sizes, to_their_names
from sere_jax.interop.tables import InteropError, flatten
from sere_jax.interop.timm import Architecture
from sere_jax.interop.torch_file import TorchFileError, write_torch
from sere_jax.train.checkpoint import CheckpointError
from sere_jax.weights.read import HF_FILE, NETWORKS, Preprocess, Weights, read_weights

FORMATS = ("timm", "dino", "ibot", "sere", "hf_vit", "npz")
DTYPES = ("float32", "bfloat16", "float16")

_FULL = ("dino", "ibot", "sere")  # layouts of whole checkpoints, which may be `.pth`
_BOTH = (*_FULL, "npz")  # have room for both networks
_HEADS = {"dino": ("heads_dino",), "ibot": ("heads_dino",), "sere": ("heads_dino", *MODULES)}  # those a layout has room for; npz: all
_NO_MASK_TOKEN = ("timm", "dino", "hf_vit")
_ENDINGS = {"timm": (".safetensors",), "hf_vit": ("",), "npz": (".npz",)} | dict.fromkeys(_FULL, (".safetensors", ".pth"))
# DistributedDataParallel, which wraps the student, puts this before the names; these methods' loaders expect it so.
_STUDENT_PREFIX = "module."

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
    report: tuple[str, ...]  # of a file: what was recognised, taken and left; of either: what the layout has no place for


def export(
    checkpoint: str | Path,
    output: str | Path,
    *,
    layout: str = "timm",
    network: str = "",
    step: int | None = None,
    with_heads: bool = False,
    dtype: str = "float32",
    heads: int = 0,
    image_size: int = 0,
) -> Exported:
    """Write one network of a checkpoint, or both, for others to use.

    Args:
      checkpoint, step, heads, image_size: as `load_backbone` takes them.
      output: FILE.safetensors; FILE.npz for npz; FILE.pth too for dino, ibot and sere; a directory for hf_vit.
      layout: timm (the backbone by timm's names), dino, ibot, sere (`backbone.*`, `head.*`, see `to_dino`), hf_vit (of Hugging
        Face's transformers), npz (our own names and shapes).
      network: teacher | student; "": the one that the recipe evaluates; both: of dino, ibot, sere and npz, under `student` and `teacher`.
      with_heads: with the heads: DINO's own for dino and ibot, the relation heads too for sere, all of them for npz.

    Raises CheckpointError, FileError and InteropError, as `load_backbone` does; InteropError on arguments that do not fit.
    """
    output = Path(output).expanduser()
    _check(output, layout, network, with_heads, dtype)
    wanted = tuple(NETWORKS) if network == "both" else (network,)
    read = [read_weights(checkpoint, network=name, step=step, heads=heads, image_size=image_size, with_heads=with_heads) for name in wanted]
    if layout == "hf_vit" and isinstance(read[0].architecture, Sizes):
        raise InteropError("format: found hf_vit, expected timm, dino or npz: a ResNet is no ViT of Hugging Face")
    tensors = {weights.about["network"]: _typed(_tensors(weights, layout, with_heads), dtype) for weights in read}
    described = _description(read[0], layout, dtype) | ({"network": "both"} if network == "both" else {})
    places = _places(output, layout)
    _write(places[0], tensors, described, both=network == "both")
    write_json(places[1], _configuration(read[0].architecture, layout, described))
    write_json(places[2], _preprocessor(read[0].preprocess))
    numbers = sum(tensor.size for named in tensors.values() for tensor in named.values())
    return Exported(*places, numbers, (*read[0].about.get("report", ()), *_lost(read, layout, with_heads)))


def _check(output: Path, layout: str, network: str, with_heads: bool, dtype: str) -> None:
    mistakes = [
        f"{name}: found {value!r}, expected one of {', '.join(choices)}"
        for name, value, choices in (("format", layout, FORMATS), ("dtype", dtype, DTYPES))
        if value not in choices
    ]
    endings = _ENDINGS.get(layout, (output.suffix,))
    if output.suffix not in endings:
        expected = "a directory" if endings == ("",) else f"a name that ends in {' or '.join(endings)}"
        mistakes.append(f"output: found {output.name!r}, expected {expected} for the format {layout}")
    if with_heads and layout in ("timm", "hf_vit"):
        mistakes.append(f"with_heads: the {layout} layout has no heads, expected the format dino, ibot, sere or npz")
    if network == "both" and layout not in _BOTH:
        mistakes.append(f"network: the {layout} layout holds one network, expected teacher or student, or the format {', '.join(_BOTH)}")
    if mistakes:
        raise InteropError("\n".join(mistakes))


def _lost(read: list[Weights], layout: str, with_heads: bool) -> list[str]:
    """What was to be written and has no place in the layout, as a line for a person."""
    if layout == "npz":
        return []
    names = [name for weights in read for name in weights.params if with_heads and name not in ("backbone", *_HEADS.get(layout, ()))]
    if layout in _NO_MASK_TOKEN and any("mask_token" in weights.params["backbone"] for weights in read):
        names.insert(0, "mask_token")
    return [f"left         {', '.join(dict.fromkeys(names))}: the {layout} layout has no place for it"] if names else []


def _places(output: Path, layout: str) -> tuple[Path, Path, Path]:
    """Where the tensors, the config and the preprocessor's description go."""
    if layout == "hf_vit":
        return output / HF_FILE, output / "config.json", output / "preprocessor_config.json"
    return output, output.with_suffix(".config.json"), output.with_suffix(".preprocessor.json")


def _typed(tensors: dict[str, np.ndarray], dtype: str) -> dict[str, np.ndarray]:
    return {name: tensor.astype(jnp.dtype(dtype)) if tensor.dtype.kind in "fV" else tensor for name, tensor in tensors.items()}


def _tensors(weights: Weights, layout: str, with_heads: bool) -> dict[str, np.ndarray]:
    backbone = weights.params["backbone"]
    if layout == "timm":
        return to_their_names(backbone, weights.batch_stats)
    if layout == "hf_vit":
        return hf.to_hf(backbone)
    if layout in _FULL:
        return to_dino(weights.params, layout=cast(Layout, layout), with_heads=with_heads, batch_stats=weights.batch_stats)
    stats = {name: value for name, value in weights.batch_stats.items() if with_heads or name == "backbone"}
    return flatten((weights.params if with_heads else {"backbone": backbone}) | ({"batch_stats": stats} if stats else {}))


def _write(path: Path, tensors: dict[str, dict[str, np.ndarray]], described: dict[str, Any], *, both: bool) -> None:
    if path.suffix == ".pth":
        path.parent.mkdir(parents=True, exist_ok=True)
        wrapped = {
            network: {(_STUDENT_PREFIX if network == "student" else "") + name: tensor for name, tensor in named.items()}
            for network, named in tensors.items()
        }
        try:
            write_torch(path, wrapped, described)
        except TorchFileError as error:
            raise FileError(f"{path}: {error}") from error
        return
    mark = "/" if path.suffix == ".npz" else "."
    flat = {f"{network}{mark}" * both + name: tensor for network, named in tensors.items() for name, tensor in named.items()}
    write_tensors(path, flat, described)


def _description(weights: Weights, layout: str, dtype: str) -> dict[str, Any]:
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
        return f"Weights of others, read from {Path(about['source']).name}. Their terms are those of whoever trained them."
    start = about["config"].get("init_from", "")
    return LICENCE if not start else f"{LICENCE} Training started from {start}, whose terms come on top."


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # a source tree that was not installed
        return "unknown"


def _configuration(sizes: Architecture | Sizes, layout: str, described: dict[str, Any]) -> dict[str, Any]:
    if layout == "hf_vit" and isinstance(sizes, Architecture):
        return hf.configuration(sizes) | {"sere_jax": described}
    return described | {"timm": _timm_arguments(sizes)}


def _timm_arguments(sizes: Architecture | Sizes) -> dict[str, Any]:
    """Arguments of timm's VisionTransformer or ResNet that make the same network."""
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
    }


def _preprocessor(prepared: Preprocess) -> dict[str, Any]:
    """In the terms of Hugging Face's image processors; theirs for BiT is the one that resizes the shorter side and crops."""
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
        "input_range": list(prepared.value_range) if any(prepared.value_range) else None,  # before all else, to levels 0..255
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(prepared.mean),
        "image_std": list(prepared.std),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The program; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m sere_jax export", description="Export the weights of a checkpoint.")
    parser.add_argument("--checkpoint", required=True, help="workdir, its checkpoints directory, one step in it, or a file")
    parser.add_argument(
        "--output", required=True, help="FILE.safetensors; .npz for npz; .pth too for dino, ibot, sere; hf_vit: a directory"
    )
    parser.add_argument("--format", default="timm", choices=FORMATS)
    parser.add_argument("--network", default="", choices=("teacher", "student", "both"), help="default: the one that the recipe evaluates")
    parser.add_argument("--step", type=int, help="default: the newest")
    parser.add_argument("--with_heads", action="store_true", help="with the heads (dino, ibot: DINO's own; sere, npz: all)")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--heads", type=int, default=0, help="attention heads, for files that do not say it")
    parser.add_argument("--image_size", type=int, default=0, help="pixels a side to resize the position embedding to; default: it stays")
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
            heads=given.heads,
            image_size=given.image_size,
        )
    except (CheckpointError, FileError, InteropError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 2
    print("".join(f"{line}\n" for line in written.report), end="")
    print(f"{written.tensors}: {written.numbers:,} numbers in {given.dtype}, format {given.format}")
    print(f"{written.config}\n{written.preprocessor}")
    return 0
