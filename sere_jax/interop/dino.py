"""The layout of DINO's checkpoints and of its descendants, iBOT's and SERE's.

`teacher.` / `student.`, `module.`, then `backbone.` (timm's names) and `head.`. iBOT adds the mask token to the backbone and
a second last layer for patches, which is the first one again where the head is shared; SERE adds relation heads to the backbone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from sere_jax.interop import relation, resnet
from sere_jax.interop.tables import InteropError, Line, Tensors, Tree, to_ours, to_theirs
from sere_jax.interop.timm import from_timm, linear

Layout = Literal["dino", "ibot", "sere"]

_MASK_TOKEN = "masked_embed"
_SHARED = "last_layer2."
# Newer PyTorch writes weight normalisation under these names.
_PARAMETRIZED = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}


class DinoNetwork(NamedTuple):
    """One network of a checkpoint."""

    params: dict[str, Any]  # {"backbone": ..., "heads_dino": ..., "heads_spatial": ...}, heads as far as there are
    batch_stats: dict[str, Any]  # of the relation heads, and of a ResNet


def to_dino(params: Tree, *, layout: Layout = "dino", with_heads: bool = False, batch_stats: Tree | None = None) -> dict[str, np.ndarray]:
    """One network's parameters {"backbone": ..., "heads_dino": ...} -> `backbone.*` and, on request, heads.

    A last layer without lengths of its own (norm_last_layer) gets `weight_g` = 1, as DINO keeps it. `dino` has no place
    for a mask token, nor for relation heads; `ibot` has one for the mask token and repeats the last layer for the patches;
    `sere` has all, and repeats the last layer where there is a mask token.

    Raises InteropError as `to_timm` does, and where a head is asked for and there is none.
    """
    tensors = resnet.to_their_names(params["backbone"], batch_stats or {})
    masked = layout != "dino" and "mask_token" in params["backbone"]
    if masked:
        tensors[_MASK_TOKEN] = np.asarray(params["backbone"]["mask_token"])
    if with_heads and layout == "sere":
        tensors |= relation.to_sere(params, batch_stats or {})
    tensors = {f"backbone.{name}": tensor for name, tensor in tensors.items()}
    if not with_heads:
        return tensors
    if "heads_dino" not in params:
        raise InteropError(f"found no heads_dino to export; there are {', '.join(sorted(params))}; the format npz holds heads of any kind")
    head = _to_head(params["heads_dino"])
    if layout == "ibot" or masked:
        head |= {name.replace("last_layer.", _SHARED): tensor for name, tensor in head.items() if name.startswith("last_layer.")}
    return tensors | {f"head.{name}": tensor for name, tensor in head.items()}


def read_dino(
    tensors: Tensors,
    *,
    network: str = "teacher",
    norm_last_layer: bool | None = None,
    relation_names: relation.Names | None = None,
    ignore: Iterable[str] = (),
) -> DinoNetwork:
    """Tensors in the layout of DINO, iBOT or SERE -> one network's parameters.

    Args:
      network: which one, where the names begin with `teacher.` and `student.`.
      norm_last_layer: True: the prototypes have length 1 and no parameter for it; False: they have; None: by the
        tensors, a length other than 1 being taken for a trained one.
      relation_names: of the layers of SERE's heads; None: by their structure.
      ignore: patterns of names (after the prefixes) that may be left over.

    Raises InteropError with all names that are missing, left over or of another shape.
    """
    plain = strip_prefixes(tensors, network)
    head = {name.removeprefix("head."): tensor for name, tensor in plain.items() if name.startswith("head.")}
    backbone = {name.removeprefix("backbone."): tensor for name, tensor in plain.items() if not name.startswith("head.")}
    relations = {name: tensor for name, tensor in backbone.items() if relation.is_relation_head(name)}
    mask_token = backbone.pop(_MASK_TOKEN, None)
    own, statistics = _backbone({name: value for name, value in backbone.items() if name not in relations}, ignore)
    params: dict[str, Any] = {"backbone": own}
    if mask_token is not None:
        params["backbone"]["mask_token"] = _mask_token(mask_token, params["backbone"])
    if any(name.startswith("last_layer.") for name in head):
        params["heads_dino"] = _head(_unshared(head), norm_last_layer, ignore)
    elif head:
        raise InteropError(f"head: found {', '.join(sorted(head))}, expected DINO's mlp.* and last_layer.*, or nothing")
    heads, batch_stats = relation.from_sere(relations, relation_names)
    return DinoNetwork(params | heads, batch_stats | statistics)


def _backbone(tensors: Tensors, ignore: Iterable[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    if not resnet.is_resnet(tensors):
        return from_timm(tensors, ignore=ignore), {}
    params, statistics = resnet.from_resnet(tensors, ignore=ignore)
    return params, {"backbone": statistics}


def is_head(name: str) -> bool:
    """Whether a name without prefixes belongs to a head: `head.*`, or a relation head in the backbone."""
    return name.startswith("head.") or relation.is_relation_head(name.removeprefix("backbone."))


def layout_of(names: Iterable[str]) -> Layout:
    """Whose checkpoint it is, as far as names without prefixes tell: an iBOT teacher whose head is gone looks like DINO's."""
    names = [name.removeprefix("backbone.") for name in names]
    if any(relation.is_relation_head(name) for name in names):
        return "sere"
    return "ibot" if any(name == _MASK_TOKEN or name.startswith(f"head.{_SHARED}") for name in names) else "dino"


def strip_prefixes(tensors: Tensors, network: str) -> dict[str, np.ndarray]:
    """Names without `NETWORK.` and `module.`; the other network's tensors and what is neither's are left out.

    Raises InteropError where there are networks and `network` is not among them.
    """
    networks = {name.partition(".")[0] for name in tensors} & {"teacher", "student"}
    if networks and network not in networks:
        raise InteropError(f"network: found {network!r}, expected one of {', '.join(sorted(networks))}")
    prefix = f"{network}." if networks else ""
    chosen = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return {name.removeprefix("module."): tensor for name, tensor in chosen.items()}


def _mask_token(tensor: np.ndarray, backbone: Mapping[str, Any]) -> np.ndarray:
    expected = (1, backbone["cls_token"].shape[-1])
    if tensor.shape != expected:
        raise InteropError(f"shape    {_MASK_TOKEN}: found {list(tensor.shape)}, expected {list(expected)}")
    return np.asarray(tensor)


def _unshared(head: Tensors) -> dict[str, np.ndarray]:
    """The head without its second last layer.

    Raises InteropError where that one is not the first again: a head of its own for patches has no place in ours.
    """
    second = {name: tensor for name, tensor in head.items() if name.startswith(_SHARED)}
    others = [name for name, tensor in second.items() if not np.array_equal(tensor, head.get(name.replace(_SHARED, "last_layer."), ()))]
    if others:
        raise InteropError(
            f"head.last_layer2: found other values than in head.last_layer ({', '.join(others)}), expected a shared head, "
            "or that heads are left (init_heads=False)"
        )
    return {name: tensor for name, tensor in head.items() if name not in second}


def _to_head(params: Tree) -> dict[str, np.ndarray]:
    head = dict(params)
    direction = np.asarray(head["last_layer"]["direction"])
    head["last_layer"] = {"scale": np.ones((direction.shape[0], 1), direction.dtype), **head["last_layer"]}
    kernels = [np.shape(head[f"mlp_{i}"]["kernel"]) for i in range(sum(key.startswith("mlp_") for key in head))]
    return to_theirs(head, _head_lines([kernels[0][0], *(shape[1] for shape in kernels)], direction.shape[0]))


def _head(tensors: Tensors, norm_last_layer: bool | None, ignore: Iterable[str]) -> dict[str, Any]:
    for newer, older in _PARAMETRIZED.items():
        tensors = {name.replace(newer, older): tensor for name, tensor in tensors.items()}
    # Linear layers have even positions in the sequence; a head of one layer is no sequence.
    names = sorted((name for name in tensors if re.fullmatch(r"mlp(\.\d+)?\.weight", name)), key=lambda name: int("0" + name[4:-7]))
    if not names or any(tensors[name].ndim != 2 for name in names):
        raise InteropError(f"head: found no linear layers mlp.0.weight, ...; there are {', '.join(sorted(tensors))}")
    widths = [tensors[names[0]].shape[1], *(tensors[name].shape[0] for name in names)]
    prototypes = next(len(tensor) for name, tensor in tensors.items() if name.startswith("last_layer."))
    head = to_ours(tensors, _head_lines(widths, prototypes), ignore=ignore)
    trained = bool(np.any(head["last_layer"]["scale"] != 1))
    if norm_last_layer and trained:
        raise InteropError("last_layer.weight_g: found lengths other than 1, expected 1 with norm_last_layer=True")
    if norm_last_layer or (norm_last_layer is None and not trained):
        del head["last_layer"]["scale"]
    return head


def _head_lines(widths: list[int], prototypes: int) -> list[Line]:
    """`widths`: input, hidden ones, bottleneck."""
    count = len(widths) - 1
    table = []
    for i in range(count):
        table += linear(f"mlp_{i}/", "mlp." if count == 1 else f"mlp.{2 * i}.", widths[i], widths[i + 1])
    return [
        *table,
        Line("last_layer/scale", "last_layer.weight_g", (prototypes, 1)),
        Line("last_layer/direction", "last_layer.weight_v", (prototypes, widths[-1])),
    ]
