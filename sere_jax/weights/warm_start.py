"""The first state of a run that starts from somebody's weights: `init_from`, backbone and heads of student and teacher.

Read and held against the config before anything compiles. What the source does not hold starts as usual: heads that it lacks,
the optimizer's moments, the centers, the step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
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
    """Arrays for leaves of the state by their paths (`params/backbone/norm/scale`), and what was taken, as lines."""

    leaves: Mapping[str, np.ndarray]
    report: tuple[str, ...]


def read(config: ConfigDict, abstract_state: State) -> WarmStart:
    """The weights of `init_from` for the state of the config.

    A source that holds one network gives it to student and teacher alike; one that holds both gives each its own.
    Raises ConfigError: the source is missing, damaged, or does not fit; everything that does not fit is listed.
    """
    try:
        there = networks_of(config.init_from)
        found = {network: _weights(config, network if network in there else "") for network in NETWORKS}
        leaves: dict[str, np.ndarray] = {}
        report = []
        for network, weights in found.items():
            field, statistics = NETWORKS[network]
            if not part(abstract_state, field):  # a method without a teacher
                continue
            if network == "teacher":
                weights = weights._replace(params=without(weights.params, pretraining.recipe(config).student_only))
            taken, lines = _taken(weights, part(abstract_state, field), config)
            leaves |= {f"{field}/{name}": value for name, value in taken.items()}
            found_statistics = _statistics(weights, part(abstract_state, statistics), config)
            leaves |= {f"{statistics}/{name}": value for name, value in found_statistics.items()}
            report += [*weights.about.get("report", ()), *lines] if network == "student" or there else []
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
        # Every process holds the whole array and gives its devices their parts of it.
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
    )


def _taken(weights: Weights, wanted: PyTree, config: ConfigDict) -> tuple[dict[str, np.ndarray], list[str]]:
    """The parameters of one network that the source has and the state wants; lines on what either has alone."""
    own = dict(weights.params)
    lines = []
    fresh_token = MASK_TOKEN in wanted["backbone"] and MASK_TOKEN not in own["backbone"]
    if MASK_TOKEN in own["backbone"] and MASK_TOKEN not in wanted["backbone"]:
        own["backbone"] = {name: value for name, value in own["backbone"].items() if name != MASK_TOKEN}
        lines.append("left         mask_token: nothing is masked in this run")
    if config.model.scan_blocks:
        own["backbone"] = timm.stack_blocks(own["backbone"])
    heads = [name for name in wanted if name != "backbone"]
    taken_heads = [name for name in heads if name in own and config.init_heads]
    chosen = tables.flatten({name: own[name] for name in ("backbone", *taken_heads)})
    shapes = {name: leaf.shape for name, leaf in _named({name: wanted[name] for name in ("backbone", *taken_heads)}).items()}
    if fresh_token:
        del shapes[f"backbone/{MASK_TOKEN}"]
    _check(chosen, shapes, config)
    fresh = [name for name in heads if name not in taken_heads] + ["mask_token"] * fresh_token
    left = [name for name in own if name != "backbone" and name not in taken_heads]
    lines += [f"at random    {', '.join(fresh)}"] * bool(fresh) + [f"left         {', '.join(left)}"] * bool(left)
    return chosen, lines


def _statistics(weights: Weights, wanted: PyTree, config: ConfigDict) -> dict[str, np.ndarray]:
    """Running statistics of a ResNet and of the heads that both sides have, as far as they are stored."""
    own = tables.flatten({name: value for name, value in weights.batch_stats.items() if config.init_heads or name == "backbone"})
    return {name: own[name] for name, leaf in _named(wanted).items() if name in own and own[name].shape == leaf.shape}


def _named(tree: PyTree) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _check(chosen: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], config: ConfigDict) -> None:
    try:
        tables.check(chosen, shapes)
    except InteropError as error:
        positions = "backbone/pos_embed"
        advice = []
        if positions in chosen and positions in shapes and chosen[positions].shape != shapes[positions]:
            advice.append("init_resize=True resizes the position embedding to views.global_size")
        if any(not name.startswith("backbone/") for name in (*chosen, *shapes)):
            advice.append("init_heads=False takes the backbone alone")
        raise InteropError("\n".join([str(error), *advice])) from error
