"""Weights of a checkpoint as others read them: the tensors by their names, and JSON beside them. `export_command` is the program."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import jax.numpy as jnp
import numpy as np

from sere_jax.buckets import Location
from sere_jax.commands.export_command import FULL, layout_mistakes
from sere_jax.commands.export_description import configuration, describe, preprocessor
from sere_jax.interop import hf
from sere_jax.interop.classifier import PARTS as CLASSIFIER
from sere_jax.interop.classifier import to_timm_classifier
from sere_jax.interop.dino import Layout, to_dino
from sere_jax.interop.files import FileError, write_tensors
from sere_jax.interop.relation import MODULES
from sere_jax.interop.resnet import Sizes, to_their_names
from sere_jax.interop.tables import InteropError, flatten
from sere_jax.interop.torch_file import TorchFileError, write_torch
from sere_jax.weights.read import NETWORKS, Weights, read_weights
from sere_jax.weights.source import HF_FILE
from sere_jax.writing import destination, replacing, writing_to

_HEADS = {
    "timm": CLASSIFIER,
    "dino": ("heads_dino",),
    "ibot": ("heads_dino",),
    "sere": ("heads_dino", *MODULES),
}  # heads that a layout holds; npz: all
_NO_MASK_TOKEN = ("timm", "dino", "hf_vit")
# DistributedDataParallel, which wraps the student, prefixes its names; the loaders of these methods expect it.
_STUDENT_PREFIX = "module."


class Exported(NamedTuple):
    """What was written."""

    tensors: Location
    config: Location
    preprocessor: Location
    numbers: int  # of all tensors together
    report: tuple[str, ...]  # lines: what was recognised, taken and left in a file, and what the layout cannot hold


def export(
    checkpoint: str | Location,
    output: str | Location,
    *,
    layout: str = "timm",
    network: str = "",
    step: int | None = None,
    with_heads: bool = False,
    dtype: str = "float32",
    heads: int = 0,
    image_size: int = 0,
    ignore: Iterable[str] = (),
) -> Exported:
    """Write one network of a checkpoint, or both, for others to use.

    Args:
      checkpoint, step, heads, image_size, ignore: as `load_backbone` takes them.
      output: FILE.safetensors; FILE.npz for npz; also FILE.pth for dino, ibot and sere; a directory for hf_vit.
      layout: timm (the backbone by timm's names), dino, ibot, sere (`backbone.*`, `head.*`, see `to_dino`), hf_vit (of Hugging
        Face's transformers), npz (our own names and shapes).
      network: teacher | student; "": the one that the recipe evaluates; both: in dino, ibot, sere and npz, under `student` and `teacher`.
      with_heads: also write heads: DINO's for dino and ibot, the relation heads too for sere, all of them for npz, the classifier of
        a fine-tuned network for timm.

    Raises CheckpointError, FileError and InteropError, as `load_backbone` does; InteropError on arguments that do not fit.

    Example:
      >>> from sere_jax.commands.export import export
      >>> export("RUN", "vits16.safetensors", layout="timm").tensors.name
      'vits16.safetensors'
    """
    output = destination(output)
    if mistakes := layout_mistakes(output, layout, network, with_heads, dtype):
        raise InteropError("\n".join(mistakes))
    patterns = (ignore,) if isinstance(ignore, str) else tuple(ignore)
    sides = [
        read_weights(checkpoint, network=name, step=step, heads=heads, image_size=image_size, with_heads=with_heads, ignore=patterns)
        for name in (tuple(NETWORKS) if network == "both" else (network,))
    ]
    if layout == "hf_vit" and isinstance(sides[0].architecture, Sizes):
        raise InteropError("format: found hf_vit, expected timm, dino or npz: a ResNet is no ViT of Hugging Face")
    lost = _lost(sides, layout, with_heads)
    tensors = {weights.about["network"]: _typed(_tensors(weights, layout, with_heads), dtype) for weights in sides}
    description = describe(sides[0], layout, dtype) | ({"network": "both"} if network == "both" else {})
    places = _places(output, layout)
    beside = (
        configuration(sides[0], layout, description, with_classifier=with_heads and layout == "timm"),
        preprocessor(sides[0].preprocess),
    )
    # The descriptions are renamed after the tensors are whole: a full disk leaves no file, and an older export as it was.
    with writing_to(places[0].parent), replacing(places[1]) as config, replacing(places[2]) as preprocessing:
        for path, content in zip((config, preprocessing), beside, strict=True):
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        _write(places[0], tensors, description, both=network == "both")
    numbers = sum(tensor.size for named in tensors.values() for tensor in named.values())
    return Exported(*places, numbers, (*sides[0].about.get("report", ()), *lost))


def _lost(sides: list[Weights], layout: str, with_heads: bool) -> list[str]:
    """Lines on what was to be written and has no place in the layout."""
    if layout == "npz":
        return []
    names = [name for weights in sides for name in weights.params if with_heads and name not in ("backbone", *_HEADS.get(layout, ()))]
    if layout == "timm" and not with_heads:
        names += [f"{', '.join(part for part in CLASSIFIER if part in sides[0].params)} (with_heads=True writes the classifier)"] * (
            "head" in sides[0].params
        )
    masked = [weights.about["network"] for weights in sides if "mask_token" in weights.params["backbone"]]
    if layout in _NO_MASK_TOKEN and masked:
        names.insert(0, "mask_token")
    lines = [f"left         {', '.join(dict.fromkeys(names))}: the {layout} layout has no place for it"] if names else []
    if layout not in _NO_MASK_TOKEN and "teacher" in masked:
        lines.append("left         mask_token of the teacher: in iBOT's and SERE's files only the student has one")
    return lines


def _places(output: Location, layout: str) -> tuple[Location, Location, Location]:
    """The paths of the tensors, the config and the preprocessor's description."""
    if layout == "hf_vit":
        return output / HF_FILE, output / "config.json", output / "preprocessor_config.json"
    return output, output.with_suffix(".config.json"), output.with_suffix(".preprocessor.json")


def _typed(tensors: dict[str, np.ndarray], dtype: str) -> dict[str, np.ndarray]:
    return {name: tensor.astype(jnp.dtype(dtype)) if tensor.dtype.kind in "fV" else tensor for name, tensor in tensors.items()}


def _tensors(weights: Weights, layout: str, with_heads: bool) -> dict[str, np.ndarray]:
    backbone = weights.params["backbone"]
    if layout == "timm":
        return to_timm_classifier(weights.params, weights.batch_stats) if with_heads else to_their_names(backbone, weights.batch_stats)
    if layout == "hf_vit":
        return hf.to_hf(backbone)
    if layout in FULL:
        # The teacher never sees a mask: iBOT and SERE build it without a mask token, and load it strictly.
        backbone = {name: value for name, value in backbone.items() if name != "mask_token" or weights.about["network"] != "teacher"}
        params = weights.params | {"backbone": backbone}
        return to_dino(params, layout=cast(Layout, layout), with_heads=with_heads, batch_stats=weights.batch_stats)
    stats = {name: value for name, value in weights.batch_stats.items() if with_heads or name == "backbone"}
    return flatten((weights.params if with_heads else {"backbone": backbone}) | ({"batch_stats": stats} if stats else {}))


def _write(path: Location, tensors: dict[str, dict[str, np.ndarray]], description: dict[str, Any], *, both: bool) -> None:
    if path.suffix == ".pth":
        wrapped = {
            network: {(_STUDENT_PREFIX if network == "student" else "") + name: tensor for name, tensor in named.items()}
            for network, named in tensors.items()
        }
        try:
            write_torch(path, wrapped, description)
        except TorchFileError as error:
            raise FileError(f"{path}: cannot be written: {error}") from error
        return
    mark = "/" if path.suffix == ".npz" else "."
    flat = {f"{network}{mark}" * both + name: tensor for network, named in tensors.items() for name, tensor in named.items()}
    write_tensors(path, flat, description)
