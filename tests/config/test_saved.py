"""Configs of checkpoints that are older than a key are completed by it, and nothing else in them changes."""

from __future__ import annotations

import json

from configs.common import pretrain
from sere_jax.config.check import differences, from_json, to_json
from sere_jax.config.keys import FIRST, KEYS, Key
from sere_jax.config.names import flatten
from sere_jax.config.rule import choice, count
from sere_jax.config.saved import completed

# A table with two keys of a later version: one whose default is what older versions did, and one in a new group whose default is not.
LATER = {
    "data.stride": Key(1, count(1), "Every so many images are read.", since="9.1", before=1),
    "sound.kind": Key("on", choice("on", "off"), "A bell at the end.", since="9.2", before="off"),
}


def test_a_config_from_before_a_key_existed_is_whole():
    old = json.loads(to_json(pretrain()))
    config = completed(old, {**KEYS, **LATER})
    assert flatten(config) == flatten(pretrain()) | {"data.stride": 1, "sound.kind": "off"}
    assert [line.split(":")[0] for line in differences(completed(old), config)] == ["data.stride", "sound.kind"]


def test_what_was_saved_is_kept():
    old = json.loads(to_json(pretrain())) | {"sound": {"kind": "on"}}
    assert completed(old, {**KEYS, **LATER}).sound.kind == "on"
    assert completed(old).views.aspect == (3 / 4, 4 / 3)  # a tuple again, not JSON's list
    assert completed(json.loads(to_json(pretrain()))) == from_json(to_json(pretrain())) == pretrain()


def test_keys_of_the_first_version_are_not_invented():
    assert flatten(completed({"data": {"source": "bundled"}})).keys() == {"data.source"} | {
        path for path, key in KEYS.items() if key.since != FIRST
    }


def test_what_stands_for_older_versions_keeps_the_rule():
    later = {path: key for path, key in {**KEYS, **LATER}.items() if key.since != FIRST}
    assert later and not [path for path, key in later.items() if not key.rule.accepts(key.before)]
