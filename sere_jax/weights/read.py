"""Read the weights of any checkpoint, ours or others', as NumPy trees with what using and exporting them needs. No device is used."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from sere_jax.buckets import Location
from sere_jax.build import pretraining
from sere_jax.config.saved import completed
from sere_jax.interop import formats, resnet, timm
from sere_jax.interop.files import FileError, read_tensors
from sere_jax.interop.tables import InteropError, flatten, nest
from sere_jax.interop.torch_file import LEFT
from sere_jax.models.resnet import ResNet
from sere_jax.ops.resize import bicubic_matrix
from sere_jax.train.checkpoint import CheckpointError, holds, read_config, read_state
from sere_jax.train.disk import brief
from sere_jax.weights import fine_tuned
from sere_jax.weights.beside import Preprocess, check_heads, preprocess_of_file, sizes_of_file
from sere_jax.weights.metadata import checked
from sere_jax.weights.source import is_run, path_of, reading, whole

# The paths in a state at which a network's parameters and its running statistics stand.
NETWORKS = {"teacher": ("method/teacher", "method/teacher_batch_stats"), "student": ("params", "batch_stats")}


class Weights(NamedTuple):
    """One network: parameters of its backbone (NumPy, unrolled blocks) and heads, and what is known about it."""

    params: dict[str, Any]  # {"backbone": ...} and the heads by name
    batch_stats: dict[str, Any]  # running statistics of the heads that have some, and of a ResNet under "backbone"
    architecture: timm.Architecture | resnet.Sizes
    preprocess: Preprocess
    about: dict[str, Any]  # source, network, step, config; of files also format; report: what was recognised, taken and left


class _Choice(NamedTuple):
    """What the caller asked for; `read_weights` explains each."""

    network: str
    step: int | None
    heads: int
    with_heads: bool
    norm_last_layer: bool | None
    ignore: tuple[str, ...]


def read_weights(
    source: str | Location,
    *,
    network: str = "",
    step: int | None = None,
    heads: int = 0,
    image_size: int = 0,
    with_heads: bool = True,
    norm_last_layer: bool | None = None,
    ignore: Iterable[str] = (),
) -> Weights:
    """Read what `load_backbone`, the export and `init_from` need.

    Args:
      source: a run's workdir, its `checkpoints` directory or one step in it; a directory that `transformers` reads; a file.
      network, step, heads, ignore: as `load_backbone` takes them.
      image_size: pixels a side to resize the position embedding to; 0: it stays.
      with_heads: False: heads of a file are not read, whatever they are like.
      norm_last_layer: as `interop.dino.read_dino` takes it.

    Raises CheckpointError, FileError and InteropError as `load_backbone` does.
    """
    path = path_of(source)
    if network and network not in NETWORKS:
        raise InteropError(f"network: found {network!r}, expected one of {', '.join(NETWORKS)}")
    step = None if step is None else whole("step", step)
    heads, image_size = whole("heads", heads), whole("image_size", image_size)
    choice = _Choice(network, step, heads, with_heads, norm_last_layer, _patterns(ignore))
    from_run = is_run(path, step)
    try:
        with reading(path):
            weights = _from_checkpoint(path, choice) if from_run else _from_file(path, choice)
        return _resized(weights._replace(about={"source": os.fspath(source)} | weights.about), image_size)
    except InteropError as error:
        raise InteropError(f"{path}: {error}") from error


def _patterns(ignore: Any) -> tuple[str, ...]:
    if isinstance(ignore, str):
        return (ignore,)
    patterns = tuple(ignore) if isinstance(ignore, Iterable) else (ignore,)
    if wrong := [pattern for pattern in patterns if not isinstance(pattern, str)]:
        raise InteropError(f"ignore: found {wrong[0]!r}, expected names of tensors, which may hold * and ?")
    return patterns


def networks_of(source: str | Location) -> tuple[str, ...]:
    """The networks that a checkpoint or a file tells apart; () where it holds one network without a name.

    Raises FileError where the source is missing or of unknown kind, and CheckpointError for a directory without checkpoints.
    """
    path = path_of(source)
    with reading(path):
        if not path.is_dir():
            return formats.networks_in(read_tensors(path)[0])
    if fine_tuned.kind(path, None) == fine_tuned.KIND:
        return ()
    return tuple(network for network, (field, _) in NETWORKS.items() if holds(path, field))


def part(state: Any, path: str) -> Any:
    """The branch of a state, of tuples or of nested dicts, at a path such as `method/teacher`; {} where a dict has none."""
    for name in path.split("/"):
        state = state.get(name, {}) if isinstance(state, Mapping) else getattr(state, name)
    return state


def architecture(config: ConfigDict) -> timm.Architecture | resnet.Sizes:
    """The sizes of the config's backbone."""
    module = pretraining.backbone(config)
    if isinstance(module, ResNet):
        return resnet.Sizes(module.stem, module.stages, module.in_channels, module.image_size)
    return timm.Architecture(
        module.width, module.depth, module.heads, module.patch_size, module.image_size, module.in_channels, module.norm_eps
    )


def preprocess(config: ConfigDict) -> Preprocess:
    """How images are prepared for a network trained with the config: squares as large as the longer side of its global crops."""
    size = config.eval.size or pretraining.backbone(config).image_size
    mean, std = tuple(config.photometry.mean), tuple(config.photometry.std)
    value_range = tuple(config.data.value_range)
    return Preprocess(size, config.eval.resize or size * 256 // 224, mean, std, value_range=value_range)


def _from_checkpoint(path: Location, choice: _Choice) -> Weights:
    kind = fine_tuned.kind(path, choice.step)
    if kind == fine_tuned.KIND:
        return _from_fine_tuned(path, choice)
    if kind != "pretrain":
        raise CheckpointError(f"{path}: found a checkpoint of the protocol {kind}, which holds no backbone; expected the one it evaluated")
    config = completed(read_config(path, choice.step))
    network = choice.network or pretraining.recipe(config).eval_network
    field, statistics = NETWORKS[network]
    if not holds(path, field, choice.step):
        raise CheckpointError(f"{path}: found no {network} in the checkpoint; expected network={' or '.join(networks_of(path))}")
    only = (field, statistics) if holds(path, statistics, choice.step) else (field,)
    state, step = read_state(path, choice.step, only=only)
    params, left = _without_ignored(part(state, field), choice.ignore)
    batch_stats, _ = _without_ignored(part(state, statistics), choice.ignore)
    if "backbone" not in params:
        raise CheckpointError(f"{path}, step {step}: the {network} has no backbone; found {', '.join(sorted(params))}")
    params["backbone"] = timm.unstack_blocks(params["backbone"])
    sizes = architecture(config)
    check_heads(choice.heads, 0 if isinstance(sizes, resnet.Sizes) else sizes.heads, "which the run's config states")
    about = {"network": network, "step": step, "config": config.to_dict()}
    report = [f"left         {name}" for name in left] + _unmatched([*flatten(part(state, field))], choice.ignore)
    return Weights(params, batch_stats, sizes, preprocess(config), about | ({"report": report} if report else {}))


def _from_fine_tuned(path: Location, choice: _Choice) -> Weights:
    if choice.network:
        raise InteropError(f"network: found {choice.network!r}, expected none: a fine-tuned checkpoint holds one")
    weights = Weights(*fine_tuned.read(path, choice.step))
    sizes = weights.architecture
    check_heads(choice.heads, 0 if isinstance(sizes, resnet.Sizes) else sizes.heads, "which the checkpoint states")
    params, left = _without_ignored(weights.params, choice.ignore)
    report = [*weights.about["report"], *(f"left         {name}" for name in left), *_unmatched([*flatten(weights.params)], choice.ignore)]
    return weights._replace(params=params, about=weights.about | {"report": report})


def _without_ignored(tree: Mapping[str, Any], patterns: tuple[str, ...]) -> tuple[dict[str, Any], tuple[str, ...]]:
    if not patterns:
        return dict(tree), ()
    named, left = formats.leave_out(flatten(tree), patterns)
    return nest(named), left


def _unmatched(names: list[str], patterns: tuple[str, ...]) -> list[str]:
    """Lines on patterns that match nothing: one list may serve several checkpoints, so this is not an error."""
    return [f"ignore       {pattern!r} matches no tensor" for pattern in formats.unmatched(names, patterns)]


def _from_file(path: Location, choice: _Choice) -> Weights:
    tensors, metadata = read_tensors(path)
    try:
        return _of_file(path, tensors, checked(metadata), choice)
    except (InteropError, FileError):
        raise
    except Exception as error:  # names, shapes and JSON of strangers, each of which is valid by itself
        raise InteropError(f"its names, its metadata or the JSON beside it are not those of a network ({brief(error)})") from error


def _of_file(path: Location, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, Any], choice: _Choice) -> Weights:
    stored = metadata.get("network", "")
    if choice.network and stored not in ("", "both", choice.network):
        raise InteropError(f"network: found {choice.network!r}, expected {stored!r}, the one that the file holds")
    network = choice.network or (stored if stored in NETWORKS else formats.evaluated_network(tensors))
    norm_last_layer = choice.norm_last_layer
    if norm_last_layer is None:  # of our own files: lengths that are all 1 may still be trained
        norm_last_layer = (metadata.get("config") or {}).get("head", {}).get("norm_last_layer")
    imported = formats.import_network(
        tensors, network=network, with_heads=choice.with_heads, norm_last_layer=norm_last_layer, ignore=choice.ignore
    )
    imported = imported._replace(left=(*imported.left, *metadata.get(LEFT, ())))
    network = network if choice.network or stored or formats.networks_in(tensors) else ""
    sizes, notes = sizes_of_file(path, imported, metadata, choice.heads)
    prepare, more = preprocess_of_file(path, imported, metadata, sizes)
    about = {
        "network": network,
        "step": metadata.get("step"),
        "config": metadata.get("config", {}),
        "format": imported.format,
        "licence": metadata.get("licence", ""),
        "report": [*formats.describe(imported, network), *_unmatched([*tensors], choice.ignore), *notes, *more],
    }
    return Weights(imported.params, imported.batch_stats, sizes, prepare, about)


def _resized(weights: Weights, image_size: int) -> Weights:
    sizes = weights.architecture
    if image_size in (0, sizes.image_size):
        return weights
    old_size, old_resize = weights.preprocess[:2]
    usual = old_resize == old_size * 256 // 224
    resize = image_size * 256 // 224 if usual else round(image_size * old_resize / old_size)  # the same share of the image is seen
    prepare = weights.preprocess._replace(size=image_size, resize=resize)
    if isinstance(sizes, resnet.Sizes):  # it has no positions to resize
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
    """Resize a stored position embedding [1, 1 + s*s, d] to a patch grid of side x side; the cls slot stays.

    PyTorch's bicubic interpolation at the plain ratio side / s, as iBOT prepares checkpoints for larger images. (A ViT that sees
    images of another size resizes by DINO's rule, `ops.resize.resize_position_embedding`.)
    """
    stored = round((embedding.shape[1] - 1) ** 0.5)
    matrix = bicubic_matrix(stored, side, offset=0.0).astype(np.float64)
    patches = embedding[0, 1:].astype(np.float64).reshape(stored, stored, -1)
    resized = np.einsum("hs,wt,std->hwd", matrix, matrix, patches).reshape(1, side * side, -1)
    return np.concatenate([embedding[:, :1], resized.astype(embedding.dtype)], axis=1)
