"""The published detector on ViT-S/16 at 800 pixels compiles for a TPU slice, and its memory is reported."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

GIB = 2**30


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu (requirements-aot.txt)")
def test_a_step_at_800_pixels_compiles_for_a_slice_and_a_second_image_costs_what_it_needs():
    """One image and two on each of four v5p chips, whose 95 GiB bound no compilation; `-s` shows the bytes by kind."""
    memory = []
    for images in (1, 2):
        command = [sys.executable, "-m", "tests.evals.trained.detection_memory", "v5p:2x2x1", str(images)]
        done = subprocess.run(
            command, cwd=Path(__file__).parents[3], env=os.environ | {"XLA_FLAGS": ""}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        memory.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"{images} images of 800 x 1088 a chip: " + ", ".join(f"{kind} {size / GIB:.2f} GiB" for kind, size in memory[-1].items()))
    one, two = memory
    # 22 million parameters in the backbone, 7 x 7 x 256 x 1,024 in the hidden layer of each box head. Adam holds two moments.
    assert one["parameters"] > 4 * 60e6 and one["optimizer"] == pytest.approx(2 * one["parameters"], rel=0.01)
    assert {key: two[key] for key in ("parameters", "optimizer")} == {key: one[key] for key in ("parameters", "optimizer")}
    assert two["batch"] == 2 * one["batch"] and two["temporaries"] > one["temporaries"]
    assert sum(two.values()) < 95 * GIB
