"""Checkpoints from before a key existed stay readable, and their runs can go on."""

from __future__ import annotations

import json
from pathlib import Path

from configs.common import pretrain
from sere_jax.build import pretraining
from sere_jax.config import keys
from sere_jax.config.check import differences, flatten, mistakes
from sere_jax.config.saved import ADDED_KEYS, completed
from sere_jax.weights import read

OLD = Path(__file__).resolve().parents[1] / "golden" / "config_2026-11-22.json"


def test_a_config_from_before_a_key_existed_is_whole():
    """A failure here means: a key was added to configs/common.py; give it a line in `ADDED_KEYS`. Never edit the golden file."""
    old = json.loads(OLD.read_text())
    assert not ADDED_KEYS.keys() & flatten(old).keys()
    found = completed(old)
    assert flatten(found).keys() == flatten(pretrain()).keys() == keys.RULES.keys()
    assert not mistakes(found, devices=1, processes=1)
    assert read.architecture(found).width == 96 and read.preprocess(found).size == 40
    pretraining.network(found)


def test_what_was_saved_is_kept_and_the_rest_means_what_was_done_before():
    found = completed(json.loads(OLD.read_text()) | {"views": {"global_width": 64}})
    assert found.views.to_dict() == {"global_width": 64, "global_count": 2, "local_width": 0}
    default = flatten(pretrain())
    assert {key: default[key] for key in ADDED_KEYS} == dict(ADDED_KEYS)  # true as long as no default was changed afterwards
    assert not [line for line in differences(completed({}), pretrain()) if line.split(":")[0] in ADDED_KEYS]
