"""SERE's relation heads in the authors' checkpoints: modules inside the backbone, `backbone.pixel.*` and three more.

The modules' names are known (SPEC of the released code: pixel, channel, pixel_local, channel_local); the names within a
module are in none of our sources. So they are a table, `Names`, with names of our own for writing, and on reading they are
found by structure: a module holds one matrix and two BatchNorms, that of the projection before it and the predictor's after.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from sere_jax.interop.tables import InteropError, Line, Tensors, Tree, to_ours, to_theirs

# Our head -> their module.
MODULES: Mapping[str, str] = {
    "heads_spatial": "pixel",
    "heads_channel": "channel",
    "heads_spatial_local": "pixel_local",
    "heads_channel_local": "channel_local",
}
_STATISTICS = {"mean": "running_mean", "var": "running_var"}
_COUNTER = "num_batches_tracked"  # of PyTorch's BatchNorm; it matters only without a momentum


class Names(NamedTuple):
    """What the three layers of a relation head are called within their module."""

    bn: str = "projector.0"
    predictor: str = "predictor.0"
    predictor_bn: str = "predictor.1"


def to_sere(params: Tree, batch_stats: Tree, names: Names = Names()) -> dict[str, np.ndarray]:  # noqa: B008  (immutable)
    """The relation heads among a network's parameters, with their running statistics -> `pixel.*`, ...; {} without any.

    Raises InteropError with all parameters that are missing, unknown or of another shape.
    """
    tensors: dict[str, np.ndarray] = {}
    for head, module in MODULES.items():
        if head not in params:
            continue
        tree = {"params": params[head], "stats": batch_stats.get(head, {})}
        predictor, d = "predictor" in params[head], params[head]["bn"]["scale"].shape[0]
        found = to_theirs(tree, _lines(names, d, predictor=predictor, flat=False))
        counters = {f"{layer}.{_COUNTER}": np.zeros((), np.int64) for layer in _norms(names, predictor)}
        tensors |= {f"{module}.{name}": tensor for name, tensor in (found | counters).items()}
    return tensors


def from_sere(tensors: Tensors, names: Names | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors `pixel.*`, ... -> (parameters, running statistics) of the relation heads that are there.

    `names`: of the layers; None: found by structure, where that is unambiguous.
    Raises InteropError with all names that are missing, left over or of another shape.
    """
    params: dict[str, Any] = {}
    statistics: dict[str, Any] = {}
    for head, module in MODULES.items():
        found = {name.removeprefix(f"{module}."): tensor for name, tensor in tensors.items() if name.startswith(f"{module}.")}
        if not found:
            continue
        layers = names or _names_of(found, module)
        weight = found.get(f"{layers.predictor}.weight")
        norm = found.get(f"{layers.bn}.weight")
        if norm is None:
            raise InteropError(f"{module}: found no {layers.bn}.weight; there are {', '.join(sorted(found))}")
        table = _lines(layers, len(norm), predictor=weight is not None, flat=weight is not None and weight.ndim == 2)
        tree = to_ours(found, table, ignore=(f"*.{_COUNTER}",))
        params[head], statistics[head] = tree["params"], tree["stats"]
    return params, statistics


def is_relation_head(name: str) -> bool:
    """Whether a name of the backbone belongs to a relation head."""
    return name.partition(".")[0] in MODULES.values()


def _norms(names: Names, predictor: bool) -> list[str]:
    return [names.bn, names.predictor_bn] if predictor else [names.bn]


def _lines(names: Names, d: int, *, predictor: bool, flat: bool) -> list[Line]:
    """`flat`: the predictor is stored as a matrix [out, in], not as a 1 x 1 convolution."""
    # In the order of the layers, which a PyTorch file keeps and `_names_of` may need.
    table = _norm("bn", names.bn, d)
    if predictor:
        table.append(Line("params/predictor/kernel", f"{names.predictor}.weight", (d, d), "linear" if flat else "pointwise"))
        table += _norm("predictor_bn", names.predictor_bn, d)
    return table


def _norm(ours: str, theirs: str, d: int) -> list[Line]:
    lines = [Line(f"params/{ours}/scale", f"{theirs}.weight", (d,)), Line(f"params/{ours}/bias", f"{theirs}.bias", (d,))]
    return lines + [Line(f"stats/{ours}/{key}", f"{theirs}.{name}", (d,)) for key, name in _STATISTICS.items()]


def _names_of(found: Tensors, module: str) -> Names:
    """Layers by structure: the only matrix is the predictor; its BatchNorm has its parent, or comes after it in the file."""
    matrices = [name.removesuffix(".weight") for name in found if name.endswith(".weight") and np.ndim(found[name]) > 1]
    norms = [name.removesuffix(".running_mean") for name in found if name.endswith(".running_mean")]
    if not matrices and len(norms) == 1:  # the symmetric variant has no predictor
        return Names(bn=norms[0])
    if len(matrices) == 1 and len(norms) == 2:
        matrix, parent = matrices[0], matrices[0].rpartition(".")[0]
        beside = [norm for norm in norms if parent and norm.rpartition(".")[0] == parent]
        order = list(found)
        after = [norm for norm in norms if order.index(f"{norm}.weight") > order.index(f"{matrix}.weight")]
        for own in (beside, after):
            if len(own) == 1:
                return Names(next(norm for norm in norms if norm != own[0]), matrix, own[0])
    raise InteropError(
        f"{module}: cannot tell the layers of this relation head by their structure; found {', '.join(sorted(found))}; "
        "expected one matrix, a BatchNorm before it and one after it, or relation_names that name the three"
    )
