"""The weights of any checkpoint, ours or others', as NumPy trees with all that using and exporting them needs. No device."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from sere_jax.build import pretraining
from sere_jax.config.saved import completed
from sere_jax.data.images.reading import BY_TYPE, ValueRange
from sere_jax.interop import resnet, timm
from sere_jax.interop.files import READABLE, FileError, read_tensors
from sere_jax.interop.formats import TITLES, Imported, describe, import_network, networks_in
from sere_jax.interop.relation import Names
from sere_jax.interop.tables import InteropError
from sere_jax.interop.torch_file import LEFT
from sere_jax.models.resnet import ResNet
from sere_jax.ops.resize import bicubic_matrix
from sere_jax.train.checkpoint import CheckpointError, holds, read_config, read_state

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# The paths in a state at which a network's parameters and its running statistics stand.
NETWORKS = {"teacher": ("method/teacher", "method/teacher_batch_stats"), "student": ("params", "batch_stats")}
HF_FILE = "model.safetensors"


class Preprocess(NamedTuple):
    """How images are prepared: shorter side to `resize` pixels, centre crop of `size`, (pixel / 255 - mean) / std."""

    size: int
    resize: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bicubic"
    value_range: ValueRange = BY_TYPE  # of arrays and TIFF bands: values that become the levels 0 and 255


class Weights(NamedTuple):
    """One network: its backbone's parameters (NumPy, unrolled blocks) and heads, and what was told of it."""

    params: dict[str, Any]  # {"backbone": ...} and the heads by name
    batch_stats: dict[str, Any]  # running statistics of the heads that have any, and of a ResNet under "backbone"
    architecture: timm.Architecture | resnet.Sizes
    preprocess: Preprocess
    about: dict[str, Any]  # source, network, step, config; of files also format, and report: what was recognised, taken and left


def read_weights(
    source: str | Path,
    *,
    network: str = "",
    step: int | None = None,
    heads: int = 0,
    image_size: int = 0,
    with_heads: bool = True,
    norm_last_layer: bool | None = None,
    relation_names: Names | None = None,
    ignore: Iterable[str] = (),
) -> Weights:
    """What `load_backbone`, the export and `init_from` read.

    Args:
      source: a run's workdir, its `checkpoints` directory or one step in it; a directory that `transformers` reads; a file.
      network, step, heads, ignore: as `load_backbone` takes them.
      image_size: pixels a side that the position embedding is resized to; 0: as it is stored.
      with_heads: False: heads are left in the file, whatever they are like.
      norm_last_layer, relation_names: as `interop.dino.read_dino` takes them.

    Raises CheckpointError, FileError and InteropError as `load_backbone` does.
    """
    path = _file_of(source)
    if path.is_dir():
        return _resized(_from_checkpoint(path, network, step), image_size)
    tensors, metadata = read_tensors(path)
    held = metadata.get("network", "")
    if network and held not in ("", "both", network):
        raise InteropError(f"{path}: network: found {network!r}, expected {held!r}, the one that the file holds")
    if norm_last_layer is None:
        norm_last_layer = _told_by_config(metadata)
    there = networks_in(tensors)
    chosen = network or (held if held in NETWORKS else "") or ("teacher" if "teacher" in there or not there else there[0])
    imported = import_network(
        tensors,
        network=chosen,
        with_heads=with_heads,
        norm_last_layer=norm_last_layer,
        relation_names=relation_names,
        ignore=ignore,
    )
    return _resized(_weights(path, imported, metadata, chosen if network or held or there else "", heads), image_size)


def networks_of(source: str | Path) -> tuple[str, ...]:
    """The networks that a checkpoint or a file tells apart: () where there is one, without a name.

    Raises FileError where it is not there or of no known kind, and CheckpointError for a directory without checkpoints.
    """
    path = _file_of(source)
    if not path.is_dir():
        return networks_in(read_tensors(path)[0])
    return tuple(network for network, (field, _) in NETWORKS.items() if holds(path, field))


def part(state: Any, path: str) -> Any:
    """The branch of a state, of tuples or of nested dicts, at a path such as `method/teacher`; {} where a dict has none."""
    for name in path.split("/"):
        state = state.get(name, {}) if isinstance(state, Mapping) else getattr(state, name)
    return state


def _file_of(source: str | Path) -> Path:
    path = Path(source).expanduser()
    if path.is_dir():
        return path / HF_FILE if (path / HF_FILE).is_file() else path
    if not path.name.endswith(READABLE):
        raise FileError(f"{path}: expected a workdir, a directory of checkpoints, or a file {' '.join(READABLE)}; {_seen(path)}")
    return path


def architecture(config: ConfigDict) -> timm.Architecture | resnet.Sizes:
    """The sizes of the config's backbone."""
    found = pretraining.backbone(config)
    if isinstance(found, ResNet):
        return resnet.Sizes(found.stem, found.stages, found.in_channels, found.image_size)
    return timm.Architecture(found.width, found.depth, found.heads, found.patch_size, found.image_size, found.in_channels)


def preprocess(config: ConfigDict) -> Preprocess:
    """How images are prepared for a network that was trained with the config: squares, as large as the longer side of its global crops."""
    size = config.eval.size or pretraining.backbone(config).image_size
    mean, std = tuple(config.photometry.mean), tuple(config.photometry.std)
    value_range = tuple(config.data.value_range)
    return Preprocess(size, config.eval.resize or size * 256 // 224, mean, std, value_range=value_range)


def _seen(path: Path) -> str:
    return f"found a file that ends in {path.suffix!r}" if path.exists() else "it does not exist"


def _from_checkpoint(path: Path, network: str, step: int | None) -> Weights:
    config = completed(read_config(path, step))
    network = network or pretraining.recipe(config).eval_network
    if network not in NETWORKS:
        raise InteropError(f"network: found {network!r}, expected one of {', '.join(NETWORKS)}")
    field, statistics = NETWORKS[network]
    if not holds(path, field, step):
        raise CheckpointError(f"{path}: found no {network} in the checkpoint; expected network={' or '.join(networks_of(path))}")
    state, step = read_state(path, step, only=(field, statistics) if holds(path, statistics, step) else (field,))
    params = dict(part(state, field))
    if "backbone" not in params:
        raise CheckpointError(f"{path}, step {step}: the {network} has no backbone; found {', '.join(sorted(params))}")
    params["backbone"] = timm.unstack_blocks(params["backbone"])
    about = {"source": str(path), "network": network, "step": step, "config": config.to_dict()}
    return Weights(params, part(state, statistics), architecture(config), preprocess(config), about)


def _told_by_config(metadata: Mapping[str, Any]) -> bool | None:
    """Whether the prototypes of one of our own files have lengths: that they are all 1 does not say that they are fixed."""
    return (metadata.get("config") or {}).get("head", {}).get("norm_last_layer")


def _weights(path: Path, imported: Imported, metadata: Mapping[str, Any], network: str, heads: int) -> Weights:
    beside = _beside(path) if imported.format == "hf_vit" else {}
    saved = metadata.get("architecture", {}).get("heads", 0) or beside.get("num_attention_heads", 0)
    sizes: timm.Architecture | resnet.Sizes
    if "conv1" in imported.params["backbone"]:
        sizes = resnet.sizes_of_params(imported.params["backbone"], metadata.get("architecture", {}).get("image_size", 224))
    else:
        sizes = timm.architecture_of_params(imported.params["backbone"], heads=_heads(path, heads, saved, imported))
    prepared = metadata.get("preprocess")
    imported = imported._replace(left=(*imported.left, *metadata.get(LEFT, ())))
    about = {
        "source": str(path),
        "network": network,
        "step": metadata.get("step"),
        "config": metadata.get("config", {}),
        "format": imported.format,
        "licence": metadata.get("licence", ""),
        "report": describe(imported, network),
    }
    prepare = _preprocess(prepared) if prepared else _imagenet(sizes.image_size)
    return Weights(imported.params, imported.batch_stats, sizes, prepare, about)


def _beside(path: Path) -> dict[str, Any]:
    """The `config.json` that Hugging Face keeps beside its weights, {} where there is none."""
    try:
        return json.loads((path.parent / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _heads(path: Path, heads: int, saved: int, imported: Imported) -> int:
    if heads and saved and heads != saved:
        raise InteropError(f"{path}: heads: found {heads}, expected {saved}, which the file says itself")
    if heads and not saved and imported.heads not in (0, heads):
        raise InteropError(f"{path}: heads: found {heads}, expected {imported.heads}, as the ViTs of {TITLES[imported.format]} have")
    if heads or saved or imported.heads:
        return heads or saved or imported.heads
    width = imported.params["backbone"]["cls_token"].shape[-1]
    raise InteropError(
        f"{path}: heads: unknown, since tensors do not show it; expected heads=N. "
        f"timm's, DINO's and iBOT's ViTs of width {width} have {max(width // 64, 1)}, MoCo v3's ViT-S has 12"
    )


def _preprocess(saved: Mapping[str, Any]) -> Preprocess:
    value_range = tuple(saved.get("value_range", BY_TYPE))
    return Preprocess(saved["size"], saved["resize"], tuple(saved["mean"]), tuple(saved["std"]), saved["interpolation"], value_range)


def _imagenet(size: int) -> Preprocess:
    """What timm's, DINO's, iBOT's and SERE's ImageNet models are evaluated with, for files that say nothing."""
    return Preprocess(size, size * 256 // 224)


def _resized(weights: Weights, image_size: int) -> Weights:
    sizes = weights.architecture
    if image_size in (0, sizes.image_size):
        return weights
    prepare = weights.preprocess._replace(size=image_size, resize=image_size * 256 // 224)
    if isinstance(sizes, resnet.Sizes):  # no positions to resize
        return weights._replace(architecture=sizes._replace(image_size=image_size), preprocess=prepare)
    if image_size % sizes.patch_size:
        raise InteropError(f"image_size: found {image_size}, expected a multiple of the patch size {sizes.patch_size}")
    old, new = sizes.image_size // sizes.patch_size, image_size // sizes.patch_size
    backbone = weights.params["backbone"]
    params = weights.params | {"backbone": backbone | {"pos_embed": resize_positions(backbone["pos_embed"], new)}}
    line = f"resized      position embedding from {old} x {old} to {new} x {new} patches"
    about = weights.about | {"report": [*weights.about.get("report", []), line], "resized_from": sizes.image_size}
    return weights._replace(params=params, architecture=sizes._replace(image_size=image_size), preprocess=prepare, about=about)


def resize_positions(embedding: np.ndarray, side: int) -> np.ndarray:
    """A stored position embedding [1, 1 + s*s, d] for another patch grid, side x side; the cls slot stays.

    PyTorch's bicubic interpolation by the plain ratio side / s, as iBOT prepares checkpoints for larger images. (What a ViT
    does by itself with images of another size is DINO's rule, `ops.resize.resize_position_embedding`.)
    """
    stored = round((embedding.shape[1] - 1) ** 0.5)
    matrix = bicubic_matrix(stored, side, offset=0.0).astype(np.float64)
    patches = embedding[0, 1:].astype(np.float64).reshape(stored, stored, -1)
    resized = np.einsum("hs,wt,std->hwd", matrix, matrix, patches).reshape(1, side * side, -1)
    return np.concatenate([embedding[:, :1], resized.astype(embedding.dtype)], axis=1)
