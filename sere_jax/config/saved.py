"""The config that a checkpoint carries, completed by the keys that are younger than the checkpoint.

A key of a later version (`Key.since`) gets the value that stands for what older versions did (`Key.before`). So
checkpoints stay readable, and runs can go on, when the config grows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from sere_jax.config.check import from_json_tree
from sere_jax.config.keys import FIRST, KEYS, Key


def completed(saved: Mapping[str, Any], keys: Mapping[str, Key] = KEYS) -> ConfigDict:
    """A saved config (the tree that JSON gives, see `checkpoint.read_config`) with its lists as tuples and later keys added.

    Keys of the first version are not added: a config without them is no config of this package, and the checks say so.
    """
    config = ConfigDict(from_json_tree(dict(saved)))
    for path, key in keys.items():
        if key.since == FIRST:
            continue
        group, _, name = path.rpartition(".")
        if group and group not in config:
            config[group] = ConfigDict()
        branch = config[group] if group else config
        if name not in branch:
            branch[name] = key.before
    return config
