"""The config that a checkpoint carries, completed by the keys that came after it was written.

A new key gets a line in `ADDED_KEYS`, with the value that means what was done before there was a choice. So checkpoints stay
readable, and runs can go on, when the config grows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from sere_jax.config.check import from_json_tree

ADDED_KEYS: Mapping[str, Any] = {
    "data.value_range": (0.0, 0.0),
    "views.global_count": 2,
    "views.global_width": 0,
    "views.local_width": 0,
    "mae.decoder_width": 512,
    "mae.decoder_depth": 8,
    "mae.decoder_heads": 16,
    "mae.normalise_pixels": True,
}


def completed(saved: Mapping[str, Any]) -> ConfigDict:
    """A saved config's tree as JSON gave it (`checkpoint.read_config`) -> the config, with its lists as tuples and no key missing."""
    config = ConfigDict(from_json_tree(dict(saved)))
    for key, value in ADDED_KEYS.items():
        group, name = key.rsplit(".", 1)
        if group not in config:
            config[group] = ConfigDict()
        if name not in config[group]:
            config[group][name] = value
    return config
