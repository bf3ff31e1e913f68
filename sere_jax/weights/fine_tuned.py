"""Read a checkpoint of fine-tuning: the backbone, and the classifier on top of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from sere_jax.buckets import Location
from sere_jax.interop import resnet, timm
from sere_jax.train.checkpoint import find_step, read_meta, read_state
from sere_jax.weights.beside import Preprocess

KIND = "fine_tune"


class FineTuned(NamedTuple):
    """The parts of `weights.read.Weights`."""

    params: dict[str, Any]  # backbone, head, and where it has them fc_norm and projection
    batch_stats: dict[str, Any]
    architecture: timm.Architecture | resnet.Sizes
    preprocess: Preprocess
    about: dict[str, Any]


def kind(path: Location, step: int | None) -> str:
    """What a checkpoint is of: `pretrain`, or an evaluation that trains: fine_tune, linear, segmentation, detection."""
    return str(_identity(path, step).get("kind", "pretrain"))


def read(path: Location, step: int | None) -> FineTuned:
    """Read a checkpoint whose kind is `KIND`. Raises CheckpointError as `read_state` does."""
    network = _identity(path, step)["network"]
    state, step = read_state(path, step, only=("params",))
    params = state["params"]
    batch_stats: dict[str, Any] = {}
    if not network["architecture"].get("heads"):
        batch_stats = read_state(path, step, only=("batch_stats",))[0]["batch_stats"]
    about = {
        "network": "",
        "step": step,
        "config": {},
        "classes": network["classes"],
        "started_from": network["started_from"],
        "report": [f"left         {', '.join(sorted(set(params) - {'backbone'}))}: the classifier of {len(network['classes'])} classes"],
    }
    return FineTuned(params, batch_stats, _architecture(network["architecture"]), _preprocess(network["preprocess"]), about)


def _identity(path: Location, step: int | None) -> dict[str, Any]:
    """What the run says of itself, beside its config."""
    return dict(read_meta(*find_step(path, step)).get("identity") or {})


def _architecture(saved: Mapping[str, Any]) -> timm.Architecture | resnet.Sizes:
    if saved.get("heads"):
        return timm.Architecture(**saved)
    return resnet.Sizes(**{**saved, "stages": tuple(saved["stages"])})


def _preprocess(saved: Mapping[str, Any]) -> Preprocess:
    mean, std, value_range = (tuple(saved[name]) for name in ("mean", "std", "value_range"))
    return Preprocess(saved["size"], saved["resize"], mean, std, value_range=value_range)
