"""Restoring a state whose blocks are stacked as one whose blocks are separate, and back, so that a run may change `scan_blocks`.

Stacked leaves are named `blocks/...` and have the layer as their leading axis; separate ones are named `blocks_0/...`, `blocks_1/...`.
The names of leaves decide, so parameters, teacher and optimizer moments follow the same rule.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec, Sharding

_BLOCK = re.compile(r"(?<![^/])blocks_(\d+)(?![^/])")
_STACK = re.compile(r"(?<![^/])blocks(?![^/])")


def is_stacked(path: str) -> bool:
    """Whether a parameter of this path lies in stacked blocks and has the layer as its leading axis.

    >>> is_stacked("backbone/blocks/norm1/scale"), is_stacked("backbone/blocks_0/norm1/scale")
    (True, False)
    """
    return bool(_STACK.search(path))


def stored(wanted: Mapping[str, jax.ShapeDtypeStruct], saved: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """The leaves to read from a checkpoint to make the `wanted` ones; `saved` names its leaves, in either layout."""
    leaves: dict[str, jax.ShapeDtypeStruct] = {}
    for name, leaf in wanted.items():
        if name not in saved and (parts := _blocks_of(name, leaf)) and parts[0] in saved:
            leaf = jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=_without_layers(leaf.sharding))
            leaves |= dict.fromkeys(parts, leaf)
        elif name not in saved and (stack := _stack_of(name)) and stack in saved:
            if stack not in leaves:
                depth = sum(_stack_of(other) == stack for other in wanted)
                leaves[stack] = jax.ShapeDtypeStruct((depth, *leaf.shape), leaf.dtype, sharding=_with_layers(leaf.sharding))
        else:
            leaves[name] = leaf
    return leaves


def arranged(arrays: Mapping[str, jax.Array], wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """The `wanted` leaves, made from the arrays of those that `stored` returned."""
    leaves: dict[str, jax.Array] = {}
    for name, leaf in wanted.items():
        if name in arrays:
            leaves[name] = arrays[name]
        elif stack := _stack_of(name):
            layer = int(_BLOCK.search(name)[1])  # type: ignore[index]  # it matched in _stack_of
            leaves[name] = jax.jit(_take, out_shardings=leaf.sharding)(arrays[stack], jnp.int32(layer))
        else:
            parts = [arrays[part] for part in _blocks_of(name, leaf)]
            leaves[name] = jax.jit(_stack, out_shardings=leaf.sharding)(parts)
    return leaves


def _take(stack: jax.Array, layer: jax.Array) -> jax.Array:
    return stack[layer]


def _stack(layers: list[jax.Array]) -> jax.Array:
    return jnp.stack(layers)


def _blocks_of(name: str, leaf: jax.ShapeDtypeStruct) -> list[str]:
    """The names of the separate blocks' leaves of a stacked leaf; [] for any other leaf."""
    return [_STACK.sub(f"blocks_{layer}", name) for layer in range(leaf.shape[0])] if _STACK.search(name) and leaf.shape else []


def _stack_of(name: str) -> str:
    """The stacked name of a separate block's leaf; '' for any other leaf."""
    return _BLOCK.sub("blocks", name) if _BLOCK.search(name) else ""


def _without_layers(sharding: Sharding | None) -> Sharding | None:
    return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:])) if isinstance(sharding, NamedSharding) else sharding


def _with_layers(sharding: Sharding | None) -> Sharding | None:
    return NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec)) if isinstance(sharding, NamedSharding) else sharding
