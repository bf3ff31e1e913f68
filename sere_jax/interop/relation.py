"""SERE's relation heads under the names of the authors' checkpoints: modules inside the backbone, `backbone.pixel_sere.*` and others.

Each module holds `projection.0` (BatchNorm), `predictor.0` (1 x 1 convolution without bias) and `predictor.1` (BatchNorm).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sere_jax.interop.tables import InteropError, Line, Tensors, Tree, to_ours, to_theirs

# Our head -> the authors' module. The authors call the spatial relation "pixel".
MODULES: Mapping[str, str] = {
    "heads_spatial": "pixel_sere",
    "heads_channel": "channel_sere",
    "heads_spatial_local": "pixel_sere_local",
    "heads_channel_local": "channel_sere_local",
}
# Files that sere_jax exported before it knew the authors' names: another module name, and `projector` for `projection`.
_EARLIER_MODULES = {module.replace("_sere", ""): module for module in MODULES.values()}
_EARLIER_LAYER = ("projector.", "projection.")
_STATISTICS = {"mean": "running_mean", "var": "running_var"}
_COUNTER = "num_batches_tracked"  # of PyTorch's BatchNorm; used only without a momentum


def to_sere(params: Tree, batch_stats: Tree) -> dict[str, np.ndarray]:
    """Relation heads of a network with their running statistics -> `pixel_sere.*`, ...; {} where the network has none.

    Raises InteropError with all parameters that are missing, unknown or misshapen.
    """
    tensors: dict[str, np.ndarray] = {}
    for head, module in MODULES.items():
        if head not in params:
            continue
        tree = {"params": params[head], "stats": batch_stats.get(head, {})}
        predictor, width = "predictor" in params[head], params[head]["bn"]["scale"].shape[0]
        named = to_theirs(tree, _lines(width, predictor=predictor))
        norms = ("projection.0", "predictor.1") if predictor else ("projection.0",)
        counters = {f"{norm}.{_COUNTER}": np.zeros((), np.int64) for norm in norms}
        tensors |= {f"{module}.{name}": tensor for name, tensor in (named | counters).items()}
    return tensors


def from_sere(tensors: Tensors) -> tuple[dict[str, Any], dict[str, Any]]:
    """`pixel_sere.*`, ... -> (parameters, running statistics) of the relation heads that are present.

    The predictor may be stored as a matrix [out, in] instead of a convolution, and may be absent (the symmetric variant).
    Raises InteropError with all names that are missing, unused or misshapen.
    """
    params: dict[str, Any] = {}
    statistics: dict[str, Any] = {}
    renamed = {_todays_name(name): tensor for name, tensor in tensors.items()}
    for head, module in MODULES.items():
        prefix = f"{module}."
        layers = {name.removeprefix(prefix): tensor for name, tensor in renamed.items() if name.startswith(prefix)}
        if not layers:
            continue
        scale, weight = layers.get("projection.0.weight"), layers.get("predictor.0.weight")
        if scale is None:
            raise InteropError(f"{module}: found no projection.0.weight; there are {', '.join(sorted(layers))}")
        predictor = any(name.startswith("predictor.") for name in layers)
        table = _lines(len(scale), predictor=predictor, matrix=weight is not None and np.ndim(weight) == 2)
        tree = to_ours(layers, table, ignore=(f"*.{_COUNTER}",))
        params[head], statistics[head] = tree["params"], tree["stats"]
    return params, statistics


def is_relation_head(name: str) -> bool:
    """Whether a name of the backbone belongs to a relation head."""
    return _todays_name(name).partition(".")[0] in MODULES.values()


def _todays_name(name: str) -> str:
    module, _, layer = name.partition(".")
    return f"{_EARLIER_MODULES[module]}.{layer.replace(*_EARLIER_LAYER)}" if module in _EARLIER_MODULES else name


def _lines(width: int, *, predictor: bool, matrix: bool = False) -> list[Line]:
    """The table of one module. `matrix`: the predictor is stored as a matrix [out, in], not as a 1 x 1 convolution."""
    table = _norm("bn", "projection.0", width)
    if predictor:
        table.append(Line("params/predictor/kernel", "predictor.0.weight", (width, width), "linear" if matrix else "pointwise"))
        table += _norm("predictor_bn", "predictor.1", width)
    return table


def _norm(ours: str, theirs: str, width: int) -> list[Line]:
    lines = [Line(f"params/{ours}/scale", f"{theirs}.weight", (width,)), Line(f"params/{ours}/bias", f"{theirs}.bias", (width,))]
    return lines + [Line(f"stats/{ours}/{key}", f"{theirs}.{name}", (width,)) for key, name in _STATISTICS.items()]
