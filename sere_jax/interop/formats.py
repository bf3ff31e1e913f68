"""Recognise the format of a file's tensors, and take one network out of them; what was recognised, taken and left is reported."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from sere_jax.interop import dino, hf, mocov3, resnet, timm, unsupported
from sere_jax.interop.integrity import UnsoundFile, check_numbers
from sere_jax.interop.relation import is_relation_head
from sere_jax.interop.tables import InteropError, Tensors, flatten, matches, nest

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
_MAE_DECODER = ("decoder_*", "mask_token")  # of MAE's own files; its mask token has the decoder's width
_STATISTICS = "batch_stats/"  # before the names of running statistics in our own files
_WIDTHS = (192, 384, 768, 1024)  # ViT-Ti, S, B, L
_COUNTER = "num_batches_tracked"  # of BatchNorms, an integer
_TIMM_WRAPPER = "timm_model."  # before timm's names in the files of transformers' TimmWrapperModel
_PREFIXES = ("teacher", "student", "module", *mocov3.ENCODERS.values(), "backbone", "vit", "timm_model")


class Imported(NamedTuple):
    """One network of a file."""

    format: str  # a key of TITLES
    params: dict[str, Any]  # {"backbone": ..., heads by name}
    batch_stats: dict[str, Any]  # running statistics of the heads that have some, and of a ResNet
    heads: int  # attention heads where the format fixes them, else 0
    left: tuple[str, ...]  # the names of the tensors that were not taken


class _Choice(NamedTuple):
    network: str
    with_heads: bool
    norm_last_layer: bool | None


def recognise(names: Iterable[str]) -> str:
    """The format that the names show: sere_jax | timm | dino (its descendants too) | mocov3 | hf_vit | resnet50.

    Raises InteropError where it is none of these.
    """
    names = list(names)
    plain = {name.removeprefix("module.") for name in names}
    rules: tuple[tuple[str, Callable[[], bool]], ...] = (
        ("sere_jax", lambda: _is_ours(names)),
        ("mocov3", lambda: mocov3.is_mocov3(names)),
        ("dino", lambda: any(name.startswith(("teacher.", "student.", "backbone.")) for name in plain)),
        # A backbone without prefixes, with what iBOT and SERE add to it.
        ("dino", lambda: any(name == dino.MASK_TOKEN or is_relation_head(name) for name in plain)),
        ("hf_vit", lambda: any(name.removeprefix("vit.") == "embeddings.cls_token" for name in plain)),
        ("timm", lambda: "patch_embed.proj.weight" in plain),
        ("resnet50", lambda: resnet.is_resnet(plain)),
    )
    for name, rule in rules:
        if rule():
            return name
    some = ", ".join(names[:5]) or "no tensors"
    raise InteropError(f"format: not recognised from {some}, ...; expected " + "; ".join(f"{key} ({text})" for key, text in TITLES.items()))


def _is_ours(names: Iterable[str]) -> bool:
    return any(name.removeprefix("teacher/").removeprefix("student/").startswith("backbone/") for name in names)


def networks_in(tensors: Iterable[str]) -> tuple[str, ...]:
    """The networks that the names tell apart, of teacher and student; () where the file holds one network without a name."""
    first_words = {name.removeprefix("module.").replace("/", ".").partition(".")[0] for name in tensors}
    return tuple(network for network in NETWORKS if network in first_words or mocov3.ENCODERS[network] in first_words)


def evaluated_network(tensors: Tensors) -> str:
    """The network to read where none was named: MoCo v3's base encoder, elsewhere the teacher where there is one."""
    networks = networks_in(tensors)
    if mocov3.is_mocov3(list(tensors)) and mocov3.EVALUATED in networks:
        return mocov3.EVALUATED
    return "teacher" if "teacher" in networks or not networks else networks[0]


def leave_out(tensors: Tensors, patterns: Iterable[str]) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Split tensors into those to read and the names that match a pattern.

    A pattern is compared with the name as it is stored, and with the name after each prefix (`teacher.`, `module.`, `backbone.`, ...).
    """
    patterns = tuple(patterns)
    left = tuple(name for name in tensors if any(matches(spelling, patterns) for spelling in spellings(name)))
    names = set(left)
    return {name: tensor for name, tensor in tensors.items() if name not in names}, left


def unmatched(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """The patterns that no name matches, by the rule of `leave_out`."""
    every_spelling = [spelling for name in names for spelling in spellings(name)]
    return [pattern for pattern in patterns if not any(matches(spelling, (pattern,)) for spelling in every_spelling)]


def spellings(name: str) -> list[str]:
    """The stored name, and what remains of it after each prefix: teacher.backbone.norm.weight, backbone.norm.weight, norm.weight."""
    names = [name]
    while names[-1].replace("/", ".").partition(".")[0] in _PREFIXES:
        names.append(names[-1].replace("/", ".", 1).partition(".")[2])
    return names


def import_network(
    tensors: Tensors,
    *,
    network: str = "teacher",
    with_heads: bool = True,
    norm_last_layer: bool | None = None,
    ignore: Iterable[str] = (),
) -> Imported:
    """Take one network out of a file's tensors, whatever their format.

    Args:
      network: teacher | student, where the file holds both.
      with_heads: False: heads are not read, whatever they are like.
      norm_last_layer: as `dino.read_dino` takes it.
      ignore: patterns of tensors to leave out, as `leave_out` compares them.

    Raises InteropError with all names that are missing, unused or misshapen; where the format is not known; and where the network
    has parts that ours lack, such as registers or layer scale.
    """
    if network not in NETWORKS:
        raise InteropError(f"network: found {network!r}, expected one of {', '.join(NETWORKS)}")
    wanted, ignored = leave_out(tensors, ignore)
    wanted = {name.removeprefix("module.").removeprefix(_TIMM_WRAPPER) if _TIMM_WRAPPER in name else name: x for name, x in wanted.items()}
    if not _is_ours(wanted):
        unsupported.refuse(spellings(name)[-1] for name in wanted)
    imported = _READERS[recognise(wanted)](wanted, _Choice(network, with_heads, norm_last_layer))
    left = {*imported.left}
    taken = {name: tensor for name, tensor in wanted.items() if not {name, name.removeprefix("module.")} & left}
    try:
        check_numbers({name: tensor for name, tensor in taken.items() if not name.endswith(_COUNTER)})
    except UnsoundFile as error:
        raise InteropError(f"{error}\n`ignore` leaves tensors out") from error
    return imported._replace(left=(*imported.left, *ignored))


def describe(imported: Imported, network: str = "") -> list[str]:
    """What was recognised, taken and left, as lines for a person."""
    # BatchNorm's counters of batches matter to nobody.
    left = [name for name in imported.left if not name.endswith(_COUNTER)]
    lines = [f"recognised   {TITLES[imported.format]}" + (f"; network {network}" if network else "")]
    for part, tree in imported.params.items():
        leaves = flatten(tree).values()
        lines.append(f"taken        {part}: {len(leaves)} tensors, {sum(leaf.size for leaf in leaves):,} numbers")
    return lines + [f"left         {text}" for text in _summary(left)]


def _summary(names: Sequence[str], shown: int = 6) -> list[str]:
    """Names grouped by their first part; a group of more than two is counted."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.replace("/", ".").partition(".")[0], []).append(name)
    few = [name for members in groups.values() if len(members) <= 2 for name in members]
    lines = [f"{group}.*: {len(members)} tensors" for group, members in groups.items() if len(members) > 2]
    if few:
        lines.append(", ".join(few[:shown]) + (f" and {len(few) - shown} more" if len(few) > shown else ""))
    return lines


def _sere_jax(tensors: Tensors, choice: _Choice) -> Imported:
    networks = networks_in(tensors)
    if networks and choice.network not in networks:
        raise InteropError(f"network: found {choice.network!r}, expected one of {', '.join(networks)}")
    prefix = f"{choice.network}/" if networks else ""
    plain = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    taken = {name: tensor for name, tensor in plain.items() if choice.with_heads or name.removeprefix(_STATISTICS).startswith("backbone/")}
    params = nest({name: tensor for name, tensor in taken.items() if not name.startswith(_STATISTICS)})
    stats = nest({name.removeprefix(_STATISTICS): tensor for name, tensor in taken.items() if name.startswith(_STATISTICS)})
    resnet.to_their_names(params.get("backbone", {}), stats)  # raises on every misfit
    return Imported("sere_jax", params, stats, 0, _others(tensors, {prefix + name for name in taken}))


def _timm(tensors: Tensors, choice: _Choice) -> Imported:
    plain = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    allowed = _CLASSIFIER + (_MAE_DECODER if "decoder_embed.weight" in plain else ())
    params = {"backbone": timm.from_timm(plain, ignore=allowed)}
    return Imported("timm", params, {}, 0, _others(plain, timm.to_timm(params["backbone"])))


def _resnet(tensors: Tensors, choice: _Choice, allowed: tuple[str, ...] = ()) -> Imported:
    plain = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    params, batch_stats = resnet.from_resnet(plain, ignore=allowed)
    taken = [line.theirs for line in resnet.lines(resnet.sizes_of(plain))]
    return Imported("resnet50", {"backbone": params}, {"backbone": batch_stats}, 0, _others(plain, taken))


def _mocov3(tensors: Tensors, choice: _Choice) -> Imported:
    plain = mocov3.encoder(tensors, choice.network)
    if resnet.is_resnet(plain):
        imported, heads = _resnet(plain, choice, mocov3.EXPECTED_LEFT), 0
        inner = [name for name in plain if name not in imported.left]
    else:
        params = {"backbone": timm.from_timm(plain, ignore=mocov3.EXPECTED_LEFT)}
        inner, heads = list(timm.to_timm(params["backbone"])), mocov3.HEADS.get(params["backbone"]["cls_token"].shape[-1], 0)
        imported = Imported("mocov3", params, {}, heads, ())
    taken = {f"{mocov3.ENCODERS[choice.network]}.{name}" for name in inner}
    left = _others((name.removeprefix("module.") for name in tensors), taken)
    return imported._replace(format="mocov3", heads=heads, left=left)


def _hf(tensors: Tensors, choice: _Choice) -> Imported:
    plain = hf.strip_prefix(tensors)
    params = {"backbone": hf.from_hf(tensors, ignore=hf.EXPECTED_LEFT)}
    sizes = timm.architecture_of_params(params["backbone"])
    taken = {line.theirs for blocks in (hf.OLD, hf.NEW) for line in hf.lines(sizes, blocks=blocks, mask_token=True)}
    return Imported("hf_vit", params, {}, 0, _others(plain, taken))


def _dino(tensors: Tensors, choice: _Choice) -> Imported:
    plain = dino.strip_prefixes(tensors, choice.network)
    taken = {name: tensor for name, tensor in plain.items() if choice.with_heads or not dino.is_head(name)}
    network = dino.read_dino(taken, norm_last_layer=choice.norm_last_layer)
    # These methods' ViTs have heads of 64 dimensions. A backbone without DINO's head may be anybody's.
    width = network.params["backbone"].get("cls_token", np.zeros(0)).shape[-1]
    heads = width // 64 if "head.mlp.0.weight" in plain and width in _WIDTHS else 0
    identities = {id(tensor) for tensor in taken.values()}
    left = tuple(name for name, tensor in tensors.items() if id(tensor) not in identities)
    return Imported(dino.layout_of(plain), network.params, network.batch_stats, heads, left)


def _others(names: Iterable[str], taken: Iterable[str]) -> tuple[str, ...]:
    taken = set(taken)
    return tuple(name for name in names if name not in taken)


_READERS: dict[str, Callable[[Tensors, _Choice], Imported]] = {
    "sere_jax": _sere_jax,
    "timm": _timm,
    "mocov3": _mocov3,
    "hf_vit": _hf,
    "dino": _dino,
    "resnet50": _resnet,
}
