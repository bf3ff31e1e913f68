"""Which format a file's tensors are in, and one network out of them: what was recognised, taken and left is all told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import numpy as np

from sere_jax.interop import dino, hf, mocov3, resnet, timm
from sere_jax.interop.relation import Names
from sere_jax.interop.tables import InteropError, Tensors, flatten, nest

TITLES = {
    "sere_jax": "sere_jax's own names",
    "timm": "timm's names, which are also those of DINO's and iBOT's hub backbones",
    "dino": "a DINO checkpoint",
    "ibot": "an iBOT checkpoint",
    "sere": "a SERE checkpoint",
    "mocov3": "a MoCo v3 checkpoint",
    "hf_vit": "a Hugging Face ViT",
    "resnet50": "torchvision's names of a ResNet, which are also timm's",
}
NETWORKS = ("teacher", "student")

_CLASSIFIER = ("head.weight", "head.bias")  # of timm's models; features come before it
_STATISTICS = "batch_stats/"  # before the names of running statistics in our own files
_WIDTHS = (192, 384, 768, 1024)  # ViT-Ti, S, B, L


class Imported(NamedTuple):
    """One network of a file."""

    format: str  # a key of TITLES
    params: dict[str, Any]  # {"backbone": ..., heads by name}
    batch_stats: dict[str, Any]  # running statistics of heads that have any
    heads: int  # attention heads where the format fixes them, else 0
    left: tuple[str, ...]  # the names of the tensors that were not taken


class _Asked(NamedTuple):
    network: str
    with_heads: bool
    norm_last_layer: bool | None
    relation_names: Names | None
    ignore: tuple[str, ...]


def recognise(names: Iterable[str]) -> str:
    """The format, by the names alone: sere_jax | timm | dino (its descendants too) | mocov3 | hf_vit | resnet50.

    Raises InteropError where they are none of these.
    """
    names = list(names)
    plain = {name.removeprefix("module.") for name in names}
    rules: tuple[tuple[str, Callable[[], bool]], ...] = (
        ("sere_jax", lambda: any(name.removeprefix("teacher/").removeprefix("student/").startswith("backbone/") for name in names)),
        ("mocov3", lambda: any(name.startswith("base_encoder.") for name in plain)),
        ("dino", lambda: any(name.startswith(("teacher.", "student.", "backbone.")) for name in plain)),
        ("hf_vit", lambda: any(name.removeprefix("vit.") == "embeddings.cls_token" for name in plain)),
        ("timm", lambda: "patch_embed.proj.weight" in plain),
        ("resnet50", lambda: resnet.is_resnet(plain)),
    )
    for name, rule in rules:
        if rule():
            return name
    some = ", ".join(names[:5]) or "no tensors"
    raise InteropError(f"format: not recognised from {some}, ...; expected " + "; ".join(f"{key} ({text})" for key, text in TITLES.items()))


def networks_in(tensors: Iterable[str]) -> tuple[str, ...]:
    """Which of teacher and student the names tell apart, () where there is one network without a name."""
    prefixes = {name.removeprefix("module.").replace("/", ".").partition(".")[0] for name in tensors}
    return tuple(network for network in NETWORKS if network in prefixes or mocov3.ENCODERS[network] in prefixes)


def import_network(
    tensors: Tensors,
    *,
    network: str = "teacher",
    with_heads: bool = True,
    norm_last_layer: bool | None = None,
    relation_names: Names | None = None,
    ignore: Iterable[str] = (),
) -> Imported:
    """One network out of a file's tensors, whatever their format.

    Args:
      network: teacher | student, where the file holds both.
      with_heads: False: heads are left, whatever they are like.
      norm_last_layer, relation_names: as `dino.read_dino` takes them.
      ignore: patterns of names, after all prefixes, that may be left over beyond those that a format is known for.

    Raises InteropError with all names that are missing, unused or of another shape; where the format is not known.
    """
    if network not in NETWORKS:
        raise InteropError(f"network: found {network!r}, expected one of {', '.join(NETWORKS)}")
    found = recognise(tensors)
    return _READERS[found](tensors, _Asked(network, with_heads, norm_last_layer, relation_names, tuple(ignore)))


def describe(imported: Imported, network: str = "") -> list[str]:
    """What was recognised, taken and left, as lines for a person."""
    # BatchNorm's counters of batches matter to nobody.
    left = [name for name in imported.left if not name.endswith("num_batches_tracked")]
    lines = [f"recognised   {TITLES[imported.format]}" + (f"; network {network}" if network else "")]
    for part, tree in imported.params.items():
        leaves = flatten(tree).values()
        lines.append(f"taken        {part}: {len(leaves)} tensors, {sum(leaf.size for leaf in leaves):,} numbers")
    return lines + [f"left         {text}" for text in _summary(left)]


def _summary(names: Sequence[str], shown: int = 6) -> list[str]:
    """Names by their first part, those of a large part counted."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.replace("/", ".").partition(".")[0], []).append(name)
    few = [name for members in groups.values() if len(members) <= 2 for name in members]
    lines = [f"{group}.*: {len(members)} tensors" for group, members in groups.items() if len(members) > 2]
    if few:
        lines.append(", ".join(few[:shown]) + (f" and {len(few) - shown} more" if len(few) > shown else ""))
    return lines


def _ours(tensors: Tensors, asked: _Asked) -> Imported:
    there = networks_in(tensors)
    if there and asked.network not in there:
        raise InteropError(f"network: found {asked.network!r}, expected one of {', '.join(there)}")
    prefix = f"{asked.network}/" if there else ""
    plain = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    chosen = {name: tensor for name, tensor in plain.items() if asked.with_heads or name.removeprefix(_STATISTICS).startswith("backbone/")}
    params = nest({name: tensor for name, tensor in chosen.items() if not name.startswith(_STATISTICS)})
    stats = nest({name.removeprefix(_STATISTICS): tensor for name, tensor in chosen.items() if name.startswith(_STATISTICS)})
    resnet.to_their_names(params.get("backbone", {}), stats)  # held against the table: all that does not fit is told
    return Imported("sere_jax", params, stats, 0, _left(tensors, {prefix + name for name in chosen}))


def _timm(tensors: Tensors, asked: _Asked) -> Imported:
    plain = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    params = {"backbone": timm.from_timm(plain, ignore=(*_CLASSIFIER, *asked.ignore))}
    return Imported("timm", params, {}, 0, _left(plain, timm.to_timm(params["backbone"])))


def _resnet(tensors: Tensors, asked: _Asked) -> Imported:
    plain = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    params, batch_stats = resnet.from_resnet(plain, ignore=asked.ignore)
    taken = [line.theirs for line in resnet.lines(resnet.sizes_of(plain))]
    return Imported("resnet50", {"backbone": params}, {"backbone": batch_stats}, 0, _left(plain, taken))


def _mocov3(tensors: Tensors, asked: _Asked) -> Imported:
    plain = mocov3.encoder(tensors, asked.network)
    ignore = (*mocov3.EXPECTED_LEFT, *asked.ignore)
    if resnet.is_resnet(plain):
        found = _resnet(plain, asked._replace(ignore=ignore))
        inner, heads = [name for name in plain if name not in found.left], 0
    else:
        params = {"backbone": timm.from_timm(plain, ignore=ignore)}
        inner, heads = list(timm.to_timm(params["backbone"])), mocov3.HEADS.get(params["backbone"]["cls_token"].shape[-1], 0)
        found = Imported("mocov3", params, {}, heads, ())
    taken = {f"{mocov3.ENCODERS[asked.network]}.{name}" for name in inner}
    left = _left((name.removeprefix("module.") for name in tensors), taken)
    return found._replace(format="mocov3", heads=heads, left=left)


def _hf(tensors: Tensors, asked: _Asked) -> Imported:
    plain = hf.strip_prefix(tensors)
    params = {"backbone": hf.from_hf(tensors, ignore=(*hf.EXPECTED_LEFT, *asked.ignore))}
    taken = {line.theirs for blocks in (hf.OLD, hf.NEW) for line in hf.lines(_sizes(params), blocks=blocks, mask_token=True)}
    return Imported("hf_vit", params, {}, 0, _left(plain, taken))


def _dino(tensors: Tensors, asked: _Asked) -> Imported:
    plain = dino.strip_prefixes(tensors, asked.network)
    chosen = {name: tensor for name, tensor in plain.items() if asked.with_heads or not dino.is_head(name)}
    found = dino.read_dino(
        chosen,
        norm_last_layer=asked.norm_last_layer,
        relation_names=asked.relation_names,
        ignore=asked.ignore,
    )
    # These methods' ViTs have heads of 64 dimensions. Without a head of theirs it may be anybody's file.
    width = found.params["backbone"].get("cls_token", np.zeros(0)).shape[-1]
    heads = width // 64 if "head.mlp.0.weight" in plain and width in _WIDTHS else 0
    taken = {id(tensor) for name, tensor in chosen.items() if not _ignored(name, asked.ignore)}
    left = tuple(name for name, tensor in tensors.items() if id(tensor) not in taken)
    return Imported(dino.layout_of(plain), found.params, found.batch_stats, heads, left)


def _ignored(name: str, patterns: Iterable[str]) -> bool:
    part = name.removeprefix("backbone.").removeprefix("head.")
    return any(fnmatchcase(part, pattern) for pattern in patterns)


def _sizes(params: dict[str, Any]) -> timm.Architecture:
    return timm.architecture_of_params(params["backbone"])


def _left(names: Iterable[str], taken: Iterable[str]) -> tuple[str, ...]:
    taken = set(taken)
    return tuple(name for name in names if name not in taken)


_READERS: dict[str, Callable[[Tensors, _Asked], Imported]] = {
    "sere_jax": _ours,
    "timm": _timm,
    "mocov3": _mocov3,
    "hf_vit": _hf,
    "dino": _dino,
    "resnet50": _resnet,
}
