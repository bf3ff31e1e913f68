"""Configs of methods at full size, built without computing: valid, and with the published numbers of parameters."""

from __future__ import annotations

import importlib

import jax
import pytest

from sere_jax.build import pretraining
from sere_jax.config import check as rules

VIT_S = 21_665_664  # 21.67 M
MOCO_VIT_S = {"projector": 384 * 4096 + 4096**2 + 4096 * 256 + 4 * 4096, "predictor": 2 * 256 * 4096 + 2 * 4096}
SERE = 384**2 + 4 * 384  # 148,992 a module

# Config -> parameters of the student by part, and of the whole teacher.
SIZES: dict[str, tuple[dict[str, int], int]] = {
    "mocov3_vits16": ({"backbone": VIT_S, "heads_mocov3": sum(MOCO_VIT_S.values())}, VIT_S + MOCO_VIT_S["projector"]),
    "mocov3_sere_vits16": (
        {"backbone": VIT_S, "heads_mocov3": sum(MOCO_VIT_S.values()), "heads_spatial": SERE, "heads_channel": SERE},
        VIT_S + MOCO_VIT_S["projector"] + 2 * SERE,
    ),
}

RESNET = 23_508_032
SIZES |= {
    "mocov3_resnet50": (
        {"backbone": RESNET, "heads_mocov3": 2048 * 4096 + 2 * 4096 + 4096 * 256 + 2 * 256 * 4096 + 2 * 4096},
        RESNET + 2048 * 4096 + 2 * 4096 + 4096 * 256,
    ),
}
DINO_HEAD = 2048 * 2048 + 2048 + 2048**2 + 2048 + 2048 * 256 + 256 + 65536 * 256
SIZES |= {
    "dino_resnet50": ({"backbone": RESNET, "heads_dino": DINO_HEAD}, RESNET + DINO_HEAD),
    "dino_sere_resnet50": (
        {"backbone": RESNET, "heads_dino": DINO_HEAD} | dict.fromkeys(("heads_spatial", "heads_channel"), 2048**2 + 4 * 2048),
        RESNET + DINO_HEAD + 2 * (2048**2 + 4 * 2048),
    ),
}

# MAE's ViT-B has 111,907,840 with the decoder's 197 x 512 positions, which are no parameters here.
SIZES |= {
    "mae_vits16": ({"backbone": VIT_S, "heads_mae": 25_811_712}, 0),
    "mae_vitb16": ({"backbone": 85_798_656, "heads_mae": 111_907_840 - 197 * 512 - 85_798_656}, 0),
}


def _count(tree: object) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", SIZES)
def test_full_size(name: str):
    config = importlib.import_module(f"configs.{name}").get_config("source=bundled")
    rules.validate(config, devices=8, processes=2)
    state = pretraining.abstract_state(config, pretraining.Steps(10, 1000))
    parts, teacher = SIZES[name]
    assert {part: _count(tree) for part, tree in state.params.items()} == parts
    assert _count(state.method.teacher) == teacher
