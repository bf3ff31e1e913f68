"""Start a run from weights (`init_from`): backbone and heads of student and teacher at step 0.

The weights are read and checked against the config before anything compiles. What the source lacks starts as usual: missing
heads, the optimizer's moments, the centers, the step.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from sere_jax.build import pretraining
from sere_jax.config.check import ConfigError
from sere_jax.interop import tables, timm
from sere_jax.interop.files import FileError
from sere_jax.interop.tables import InteropError
from sere_jax.train.checkpoint import CheckpointError
from sere_jax.train.state import State, without
from sere_jax.types import PyTree
from sere_jax.weights.read import NETWORKS, Weights, networks_of, part, read_weights

MASK_TOKEN = "mask_token"


class WarmStart(NamedTuple):
    """Arrays for leaves of the state by their paths (`params/backbone/norm/scale`), and a report of what was taken, as lines."""

    leaves: Mapping[str, np.ndarray]
    report: tuple[str, ...]


def read(config: ConfigDict, abstract_state: State) -> WarmStart:
    """Read the weights of `init_from` for the state of the config.

    A source with one network gives it to student and teacher alike; a source with both gives each its own.
    Raises ConfigError where the source is missing, damaged, or does not fit; every misfit is listed.
    """
    try:
        networks = networks_of(config.init_from)
        sources = {network: _weights(config, network if network in networks else "") for network in NETWORKS}
        leaves: dict[str, np.ndarray] = {}
        report: list[str] = []
        for network, weights in sources.items():
            field, statistics = NETWORKS[network]
            wanted = part(abstract_state, field)
            if not wanted:  # a method without a teacher
                continue
            if network == "teacher":
                weights = _of_teacher(weights, sources["student"], config)
            params, lines = _taken(weights, wanted, config)
            stats, more = _statistics(weights, part(abstract_state, statistics), {path.split("/")[0] for path in params})
            leaves |= {f"{field}/{path}": value for path, value in params.items()}
            leaves |= {f"{statistics}/{path}": value for path, value in stats.items()}
            report += [*weights.about.get("report", ()), *lines, *more] if network == "student" or networks else []
        return WarmStart(leaves, tuple(dict.fromkeys(report)))
    except (CheckpointError, FileError, InteropError) as error:
        raise ConfigError([f"init_from: found {config.init_from!r}: {error}"]) from error


def begin(state: State, start: WarmStart) -> State:
    """The state of step 0 with the weights of `start` in place of its own, in the same shardings."""

    def replaced(path: Any, old: jax.Array) -> jax.Array:
        new = start.leaves.get(jax.tree_util.keystr(path, simple=True, separator="/"))
        if new is None:
            return old
        whole = np.asarray(new, old.dtype)
        # Every process holds the whole array and gives each of its devices its part.
        return jax.make_array_from_callback(old.shape, old.sharding, lambda index: whole[index])

    return jax.tree_util.tree_map_with_path(replaced, state)


def _weights(config: ConfigDict, network: str) -> Weights:
    return read_weights(
        config.init_from,
        network=network,
        heads=pretraining.backbone(config).heads,
        image_size=pretraining.backbone(config).image_size if config.init_resize else 0,
        norm_last_layer=config.head.norm_last_layer,
        with_heads=config.init_heads,
        ignore=config.init_ignore.split(),
    )


def _of_teacher(weights: Weights, student: Weights, config: ConfigDict) -> Weights:
    """Without the parts that only a student has; with the student's mask token, which files of iBOT and SERE store for it alone."""
    params = without(weights.params, pretraining.recipe(config).student_only)
    if MASK_TOKEN in student.params["backbone"] and MASK_TOKEN not in params["backbone"]:
        params = params | {"backbone": params["backbone"] | {MASK_TOKEN: student.params["backbone"][MASK_TOKEN]}}
    return weights._replace(params=params)


def _taken(weights: Weights, wanted: PyTree, config: ConfigDict) -> tuple[dict[str, np.ndarray], list[str]]:
    """One network's parameters that both the source and the state have; lines on what only one of them has."""
    params, lines = dict(weights.params), _norm_lines(weights, config)
    random_token = MASK_TOKEN in wanted["backbone"] and MASK_TOKEN not in params["backbone"]
    if MASK_TOKEN in params["backbone"] and MASK_TOKEN not in wanted["backbone"]:
        params["backbone"] = {name: value for name, value in params["backbone"].items() if name != MASK_TOKEN}
        lines.append("left         mask_token: nothing is masked in this run")
    if config.model.scan_blocks:
        params["backbone"] = timm.stack_blocks(params["backbone"])
    heads = [name for name in wanted if name != "backbone"]
    taken_heads = [name for name in heads if name in params and config.init_heads]
    arrays = tables.flatten({name: params[name] for name in ("backbone", *taken_heads)})
    shapes = {path: leaf.shape for path, leaf in flatten_dict(wanted, sep="/").items() if path.split("/")[0] in ("backbone", *taken_heads)}
    if random_token:
        del shapes[f"backbone/{MASK_TOKEN}"]
    _check(arrays, shapes)
    random = [name for name in heads if name not in taken_heads] + [MASK_TOKEN] * random_token
    left = [name for name in params if name != "backbone" and name not in taken_heads]
    lines += [f"at random    {', '.join(random)}"] * bool(random) + [f"left         {', '.join(left)}"] * bool(left)
    return arrays, lines


def _norm_lines(weights: Weights, config: ConfigDict) -> list[str]:
    sizes, eps = weights.architecture, getattr(pretraining.backbone(config), "norm_eps", None)
    if not isinstance(sizes, timm.Architecture) or eps in (None, sizes.norm_eps):
        return []
    return [f"changed      LayerNorm epsilon: {sizes.norm_eps:g} in the source, {eps:g} in this run"]


def _statistics(weights: Weights, wanted: PyTree, parts: Set[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The running statistics that the source and the state have in the same shape; lines on those that only one of them has.

    `parts` are the backbone and the heads that are taken from the source; `_taken` reports the others.
    """
    stored = {path: value for path, value in tables.flatten(weights.batch_stats).items() if path.split("/")[0] in parts}
    shapes = {path: leaf.shape for path, leaf in flatten_dict(wanted, sep="/").items() if path.split("/")[0] in parts}
    fitting = {path: value for path, value in stored.items() if shapes.get(path) == np.shape(value)}
    lines = []
    if left := sorted(stored.keys() - fitting.keys()):
        lines.append(f"left         running statistics: {', '.join(_misfit(path, stored, shapes) for path in left)}")
    if fresh := sorted({path.split("/")[0] for path in shapes.keys() - fitting.keys()}):
        lines.append(f"at random    running statistics of {', '.join(fresh)}: the source lacks them; they start at mean 0 and variance 1")
    return fitting, lines


def _misfit(path: str, stored: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """A stored leaf that the state has not, or has in another shape."""
    return f"{path} {list(np.shape(stored[path]))} (expected {list(shapes[path]) if path in shapes else 'none of this name'})"


def _check(arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> None:
    try:
        tables.check(arrays, shapes)
    except InteropError as error:
        positions = "backbone/pos_embed"
        advice = []
        if positions in arrays and positions in shapes and arrays[positions].shape != shapes[positions]:
            advice.append("init_resize=True resizes the position embedding to views.global_size")
        if any(not name.startswith("backbone/") for name in (*arrays, *shapes)):
            advice.append("init_heads=False takes the backbone alone")
        raise InteropError("\n".join([str(error), *advice])) from error
