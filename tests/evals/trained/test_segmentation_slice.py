"""UperNet and the linear head on ViT-S/16 at 512 pixels compile for a TPU slice, trained and tested; their memory is reported."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

GIB = 2**30
PIXELS = 512 * 512


def measured(head: str, images: int) -> dict[str, Any]:
    """What the compiler plans for each of four v5p chips with so many crops."""
    command = [sys.executable, "-m", "tests.evals.trained.segmentation_slice", head, "v5p:2x2x1", str(images)]
    environment = os.environ | {"XLA_FLAGS": ""}
    done = subprocess.run(command, cwd=Path(__file__).parents[3], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    sizes = ", ".join(f"{kind} {size / GIB:.3f} GiB" for kind, size in result["step"].items())
    print(f"{head}, {images} crops a chip: {sizes}; logits of as many windows {result['logits'] / GIB:.3f} GiB")
    return result


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu (requirements-aot.txt)")
@pytest.mark.parametrize(("head", "parameters"), [("upernet", (30e6, 60e6)), ("segmentation_linear", (21.6e6, 21.8e6))])
def test_a_head_compiles_for_a_slice_and_a_second_crop_costs_what_it_needs(head: str, parameters: tuple[float, float]):
    """One crop and two on each chip, whose 95 GiB bound no compilation; `-s` shows the bytes by kind."""
    one, two = measured(head, 1), measured(head, 2)
    first, second = one["step"], two["step"]
    # ViT-S without a classifier and with positions of 224 pixels has 21.7 million parameters. Adam holds two moments of each.
    assert 4 * parameters[0] < first["parameters"] < 4 * parameters[1]
    trained = first["parameters"] / 4 if head == "upernet" else 2 * 384 + 384 * 21 + 21  # the frozen backbone has none
    assert first["optimizer"] == pytest.approx(8 * trained, rel=0.01)
    assert {key: second[key] for key in ("parameters", "optimizer")} == {key: first[key] for key in ("parameters", "optimizer")}
    assert first["batch"] == PIXELS * (3 + 4) + 1 and second["batch"] == 2 * first["batch"]
    assert second["temporaries"] > first["temporaries"] and sum(second.values()) < 95 * GIB
    assert one["logits"] >= PIXELS * 21 * 4 and two["logits"] > 1.5 * one["logits"]
