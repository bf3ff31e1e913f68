"""The layout of DINO's checkpoints: `teacher.` / `student.`, `module.`, then `backbone.` (timm's names) and `head.`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from sere_jax.interop.tables import InteropError, Line, Tensors, Tree, to_ours, to_theirs
from sere_jax.interop.timm import from_timm, linear, to_timm

# Newer PyTorch writes weight normalisation under these names.
_PARAMETRIZED = {
    "last_layer.parametrizations.weight.original0": "last_layer.weight_g",
    "last_layer.parametrizations.weight.original1": "last_layer.weight_v",
}


def to_dino(params: Tree, *, with_heads: bool = False) -> dict[str, np.ndarray]:
    """One network's parameters {"backbone": ..., "heads_dino": ...} -> `backbone.*` and, on request, `head.*`.

    A last layer without lengths of its own (norm_last_layer) gets `weight_g` = 1, as DINO keeps it. SERE's relation
    heads have no place in this layout.

    Raises InteropError as `to_timm` does, and where a head is asked for and there is none.
    """
    tensors = {f"backbone.{name}": tensor for name, tensor in to_timm(params["backbone"]).items()}
    if not with_heads:
        return tensors
    if "heads_dino" not in params:
        raise InteropError(f"found no heads_dino to export; there are {', '.join(sorted(params))}")
    head = dict(params["heads_dino"])
    direction = np.asarray(head["last_layer"]["direction"])
    head["last_layer"] = {"scale": np.ones((direction.shape[0], 1), direction.dtype), **head["last_layer"]}
    kernels = [np.shape(head[f"mlp_{i}"]["kernel"]) for i in range(sum(key.startswith("mlp_") for key in head))]
    table = _head_lines([kernels[0][0], *(shape[1] for shape in kernels)], direction.shape[0])
    return tensors | {f"head.{name}": tensor for name, tensor in to_theirs(head, table).items()}


def from_dino(
    tensors: Tensors, *, network: str = "teacher", norm_last_layer: bool | None = None, ignore: Iterable[str] = ()
) -> dict[str, Any]:
    """Tensors in DINO's layout -> {"backbone": ...}, with "heads_dino" where they hold a head.

    Args:
      network: which one, where the names begin with `teacher.` and `student.`.
      norm_last_layer: True: the prototypes have length 1 and no parameter for it; False: they have; None: by the
        tensors, a length other than 1 being taken for a trained one.
      ignore: patterns of names (after the prefixes) that may be left over.

    Raises InteropError with all names that are missing, left over or of another shape.
    """
    plain = strip_prefixes(tensors, network)
    backbone = {name.removeprefix("backbone."): tensor for name, tensor in plain.items() if not name.startswith("head.")}
    params: dict[str, Any] = {"backbone": from_timm(backbone, ignore=ignore)}
    head = {name.removeprefix("head."): tensor for name, tensor in plain.items() if name.startswith("head.")}
    if "last_layer.weight_v" in {_PARAMETRIZED.get(name, name) for name in head}:
        params["heads_dino"] = _head(head, norm_last_layer, ignore)
    elif head:
        raise InteropError(f"head: found {', '.join(sorted(head))}, expected DINO's mlp.* and last_layer.*, or nothing")
    return params


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


def _head(tensors: Tensors, norm_last_layer: bool | None, ignore: Iterable[str]) -> dict[str, Any]:
    tensors = {_PARAMETRIZED.get(name, name): tensor for name, tensor in tensors.items()}
    # Linear layers have even positions in the sequence; a head of one layer is no sequence.
    names = sorted((name for name in tensors if re.fullmatch(r"mlp(\.\d+)?\.weight", name)), key=lambda name: int("0" + name[4:-7]))
    if not names or any(tensors[name].ndim != 2 for name in names):
        raise InteropError(f"head: found no linear layers mlp.0.weight, ...; there are {', '.join(sorted(tensors))}")
    widths = [tensors[names[0]].shape[1], *(tensors[name].shape[0] for name in names)]
    head = to_ours(tensors, _head_lines(widths, len(tensors["last_layer.weight_v"])), ignore=ignore)
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
