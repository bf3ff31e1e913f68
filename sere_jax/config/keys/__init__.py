"""The one table of a pre-training config's keys: default, rule, first version and meaning of each.

`configs.common.pretrain()`, the checks, the completion of older configs and docs/config.md are made from it. To add a
key, add one line to the group it belongs to, and run `python -m sere_jax.config.document` to renew docs/config.md.
Nothing here imports JAX, so that a mistake in a command line is reported within a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sere_jax.config.keys import data, methods, model, training
from sere_jax.config.keys.key import FIRST, Group, Key
from sere_jax.config.rule import Rule

__all__ = ["FIRST", "GROUPS", "KEYS", "MACHINE_KEYS", "RULES", "Group", "Key", "defaults"]

GROUPS: tuple[Group, ...] = (training.TOP, *data.GROUPS, *model.GROUPS, *methods.GROUPS, *training.GROUPS)

# The full path of a key, as in data.batch_size -> the key.
KEYS: Mapping[str, Key] = {f"{group.name}.{name}" if group.name else name: key for group in GROUPS for name, key in group.keys.items()}

RULES: Mapping[str, Rule] = {path: key.rule for path, key in KEYS.items()}

# Keys that a run may change when it goes on; every other one decides what is learned.
MACHINE_KEYS = frozenset(
    f"{group.name}.{name}" for group in GROUPS for name, key in group.keys.items() if group.name and (group.machine or key.machine)
)


def defaults() -> dict[str, Any]:
    """The defaults of all keys as a new nested dictionary.

    Example:
      >>> defaults()["data"]["batch_size"]
      512
    """
    tree: dict[str, Any] = {}
    for group in GROUPS:
        branch = tree.setdefault(group.name, {}) if group.name else tree
        branch.update({name: key.default for name, key in group.keys.items()})
    return tree
