"""Mistakes in the evaluations that run while a network trains: images, patches and attention."""

from __future__ import annotations

import pytest

from tests.config.test_check import _EVALUATED as EVALUATED
from tests.config.test_check import _RESNET as RESNET
from tests.config.test_check import _mistakes

PATCHES = {"run__eval_every_steps": 5, "eval__patch_train": "bundled", "eval__patch_test": "bundled"}
MISTAKES = [
    (PATCHES, None),
    (PATCHES | EVALUATED | {"eval__attention_images": 2, "run__keep_best": "patch_knn/k10/miou"}, None),
    (PATCHES | {"eval__patch_test": ""}, "eval.patch_test: found '', expected a source, which run.eval_every_steps needs"),
    (PATCHES | {"eval__gallery": "bundled"}, "eval.query: found '', expected a source, which run.eval_every_steps needs"),
    (PATCHES | {"eval__neighbours": (5,)}, "eval.neighbours: found (5,), which is never read: eval.gallery is empty"),
    (EVALUATED | {"eval__patch_neighbours": (5,)}, "eval.patch_neighbours: found (5,), which is never read: eval.patch_train is"),
    (PATCHES | {"run__keep_best": "knn/k10/top1"}, "expected a score of the evaluation: patch_knn/k10/miou, patch_knn/k10/macc"),
    (PATCHES | {"eval__attention_images": 2}, "eval.attention_images: found 2, expected 0 without eval.query"),
    (RESNET | EVALUATED | {"eval__attention_images": 2}, "never read: model.name = resnet has nothing of the kind"),
]


@pytest.mark.parametrize(("changes", "line"), MISTAKES)
def test_each_mistake_has_its_line(changes, line):
    lines = _mistakes(**changes)
    assert lines == [] if line is None else any(line in one for one in lines), lines
