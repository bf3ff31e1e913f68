"""The layout of DINO's checkpoints and of its descendants, iBOT's and SERE's.

Names are `teacher.` or `student.`, `module.` (DistributedDataParallel), then `backbone.` (timm's names) and `head.`. iBOT adds
`masked_embed` to the student's backbone and `head.last_layer2`, which repeats the last layer where the head is shared. SERE adds
relation heads to the backbone.
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

MASK_TOKEN = "masked_embed"
_SHARED = "last_layer2."
# Newer PyTorch versions store weight normalisation under these names.
_PARAMETRIZED = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}


class DinoNetwork(NamedTuple):
    """One network of a checkpoint."""

    params: dict[str, Any]  # {"backbone": ..., "heads_dino": ..., "heads_spatial": ...}; the heads that the file holds
    batch_stats: dict[str, Any]  # running statistics of the relation heads, and of a ResNet


def to_dino(params: Tree, *, layout: Layout = "dino", with_heads: bool = False, batch_stats: Tree | None = None) -> dict[str, np.ndarray]:
    """Convert one network's parameters {"backbone": ..., "heads_dino": ...} to `backbone.*` and, on request, `head.*`.

    A last layer without its own row lengths (norm_last_layer) gets `weight_g` = 1, as in DINO's files. `dino` holds no mask token and no
    relation heads. `ibot` holds the mask token, and repeats the last layer for the patches. `sere` does too, and holds the relation heads.

    Raises InteropError as `to_timm` does, and where heads are requested and there is no DINO head.
    """
    tensors = resnet.to_their_names(params["backbone"], batch_stats or {})
    if layout != "dino" and "mask_token" in params["backbone"]:
        tensors[MASK_TOKEN] = np.asarray(params["backbone"]["mask_token"])
    if with_heads and layout == "sere":
        tensors |= relation.to_sere(params, batch_stats or {})
    tensors = {f"backbone.{name}": tensor for name, tensor in tensors.items()}
    if not with_heads:
        return tensors
    if "heads_dino" not in params:
        raise InteropError(f"found no heads_dino to export; there are {', '.join(sorted(params))}; the format npz holds heads of any kind")
    head = _to_head(params["heads_dino"])
    if layout != "dino":
        head |= {name.replace("last_layer.", _SHARED): tensor for name, tensor in head.items() if name.startswith("last_layer.")}
    return tensors | {f"head.{name}": tensor for name, tensor in head.items()}


def read_dino(tensors: Tensors, *, network: str = "teacher", norm_last_layer: bool | None = None) -> DinoNetwork:
    """Convert tensors in the layout of DINO, iBOT or SERE to one network's parameters.

    Args:
      network: the network to read where names begin with `teacher.` and `student.`.
      norm_last_layer: True: prototypes have length 1 and no length parameter. False: they have one. None: lengths other than 1
        are taken as trained.

    Raises InteropError with all names that are missing, unused or misshapen.
    """
    plain = strip_prefixes(tensors, network)
    head = {name.removeprefix("head."): tensor for name, tensor in plain.items() if name.startswith("head.")}
    backbone = {name.removeprefix("backbone."): tensor for name, tensor in plain.items() if not name.startswith("head.")}
    relations = {name: tensor for name, tensor in backbone.items() if relation.is_relation_head(name)}
    mask_token = backbone.pop(MASK_TOKEN, None)
    backbone_params, statistics = _backbone({name: value for name, value in backbone.items() if name not in relations})
    params: dict[str, Any] = {"backbone": backbone_params}
    if mask_token is not None:
        params["backbone"]["mask_token"] = _mask_token(mask_token, params["backbone"])
    if any(name.startswith("last_layer.") for name in head):
        params["heads_dino"] = _head(_unshared(head), norm_last_layer)
    elif head:
        raise InteropError(f"head: found {', '.join(sorted(head))}, expected DINO's mlp.* and last_layer.*, or nothing")
    heads, batch_stats = relation.from_sere(relations)
    return DinoNetwork(params | heads, batch_stats | statistics)


def _backbone(tensors: Tensors) -> tuple[dict[str, Any], dict[str, Any]]:
    if not resnet.is_resnet(tensors):
        return from_timm(tensors), {}
    params, statistics = resnet.from_resnet(tensors)
    return params, {"backbone": statistics}


def is_head(name: str) -> bool:
    """Whether a name without prefixes belongs to a head: `head.*`, or a relation head in the backbone."""
    return name.startswith("head.") or relation.is_relation_head(name.removeprefix("backbone."))


def layout_of(names: Iterable[str]) -> Layout:
    """The layout that names without prefixes show. An iBOT teacher without its head cannot be told from DINO's."""
    names = [name.removeprefix("backbone.") for name in names]
    if any(relation.is_relation_head(name) for name in names):
        return "sere"
    return "ibot" if any(name == MASK_TOKEN or name.startswith(f"head.{_SHARED}") for name in names) else "dino"


def strip_prefixes(tensors: Tensors, network: str) -> dict[str, np.ndarray]:
    """Keep one network's tensors, without `NETWORK.` and `module.`; tensors of neither network are dropped too.

    Raises InteropError where the file holds networks and `network` is not among them.
    """
    networks = {name.partition(".")[0] for name in tensors} & {"teacher", "student"}
    if networks and network not in networks:
        raise InteropError(f"network: found {network!r}, expected one of {', '.join(sorted(networks))}")
    prefix = f"{network}." if networks else ""
    of_network = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return {name.removeprefix("module."): tensor for name, tensor in of_network.items()}


def _mask_token(tensor: np.ndarray, backbone: Mapping[str, Any]) -> np.ndarray:
    if "cls_token" not in backbone:
        raise InteropError(f"{MASK_TOKEN}: found one in a ResNet, expected it in a ViT alone")
    expected = (1, backbone["cls_token"].shape[-1])
    if tensor.shape != expected:
        raise InteropError(f"shape    {MASK_TOKEN}: found {list(tensor.shape)}, expected {list(expected)}")
    return np.asarray(tensor)


def _unshared(head: Tensors) -> dict[str, np.ndarray]:
    """The head without its second last layer.

    Raises InteropError where the second differs from the first: our heads have one last layer, shared by cls and patches.
    """
    second = {name: tensor for name, tensor in head.items() if name.startswith(_SHARED)}
    differing = [name for name, tensor in second.items() if not np.array_equal(tensor, head.get(name.replace(_SHARED, "last_layer."), ()))]
    if differing:
        raise InteropError(
            f"head.last_layer2: found other values than in head.last_layer ({', '.join(differing)}), expected a shared head; "
            "the backbone alone can be read (init_heads=False), or the first last layer (ignore=head.last_layer2.*)"
        )
    return {name: tensor for name, tensor in head.items() if name not in second}


def _to_head(params: Tree) -> dict[str, np.ndarray]:
    head = dict(params)
    direction = np.asarray(head["last_layer"]["direction"])
    head["last_layer"] = {"scale": np.ones((direction.shape[0], 1), direction.dtype), **head["last_layer"]}
    kernels = [np.shape(head[f"mlp_{i}"]["kernel"]) for i in range(sum(key.startswith("mlp_") for key in head))]
    return to_theirs(head, _head_lines([kernels[0][0], *(shape[1] for shape in kernels)], direction.shape[0]))


def _head(tensors: Tensors, norm_last_layer: bool | None) -> dict[str, Any]:
    for newer, older in _PARAMETRIZED.items():
        tensors = {name.replace(newer, older): tensor for name, tensor in tensors.items()}
    # Linear layers have even positions in the sequence; a head of one layer is not a sequence.
    names = sorted((name for name in tensors if re.fullmatch(r"mlp(\.\d+)?\.weight", name)), key=lambda name: int("0" + name[4:-7]))
    if not names or any(tensors[name].ndim != 2 for name in names):
        raise InteropError(f"head: found no linear layers mlp.0.weight, ...; there are {', '.join(sorted(tensors))}")
    widths = [tensors[names[0]].shape[1], *(tensors[name].shape[0] for name in names)]
    prototypes = next(len(tensor) for name, tensor in tensors.items() if name.startswith("last_layer."))
    head = to_ours(tensors, _head_lines(widths, prototypes))
    trained = bool(np.any(head["last_layer"]["scale"] != 1))
    if norm_last_layer and trained:
        raise InteropError("last_layer.weight_g: found lengths other than 1, expected 1 with norm_last_layer=True")
    if norm_last_layer or (norm_last_layer is None and not trained):
        del head["last_layer"]["scale"]
    return head


def _head_lines(widths: list[int], prototypes: int) -> list[Line]:
    """`widths`: of the input, the hidden layers and the bottleneck."""
    count = len(widths) - 1
    table = []
    for i in range(count):
        table += linear(f"mlp_{i}/", "mlp." if count == 1 else f"mlp.{2 * i}.", widths[i], widths[i + 1])
    return [
        *table,
        Line("last_layer/scale", "last_layer.weight_g", (prototypes, 1)),
        Line("last_layer/direction", "last_layer.weight_v", (prototypes, widths[-1])),
    ]
