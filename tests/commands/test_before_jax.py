"""What is wrong on the command line alone, or with the path of a checkpoint, is told before JAX is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from sere_jax.train.checkpoint_manager import Checkpoints

ROOT = Path(__file__).resolve().parent.parent.parent
PROGRAM = """
import runpy, sys
name = sys.argv.pop(1)
try:
    runpy.run_path(name, run_name="__main__") if name.endswith(".py") else runpy.run_module(name, run_name="__main__", alter_sys=True)
except SystemExit as end:
    print("code", end.code, "jax" in sys.modules)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workdir with the steps 2 and 4."""
    workdir = tmp_path_factory.mktemp("run")
    with Checkpoints(workdir / "checkpoints", every_steps=1) as checkpoints:
        for step in (2, 4):
            checkpoints.save(step, {"a": jnp.ones(3)}, {})
    return workdir


EXPORT = ["sere_jax", "export", "--output=x.safetensors"]
EXTRACT = ["sere_jax", "extract", "--data=bundled", "--output=x", "--format=npz"]
EVAL = ["eval.py", "--config=configs/eval/knn.py:bundled", "--workdir=x"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([*EXPORT, "--checkpoint=RUN", "--format=bmp"], "invalid choice: 'bmp'"),
        ([*EXPORT, "--checkpoint=RUN", "--format=npz"], "found 'x.safetensors', expected a name that ends in .npz"),
        ([*EXPORT, "--checkpoint=none.safetensors"], "none.safetensors: no such file"),
        ([*EXPORT, "--checkpoint=RUN", "--step=3"], "no checkpoint of step 3 in RUN/checkpoints; there are 2, 4"),
        ([*EXPORT, "--checkpoint=RUN/checkpoints/3"], "RUN/checkpoints/3: it does not exist; the steps in RUN/checkpoints are 2, 4"),
        ([*EXTRACT, "--checkpoint=RUN", "--step=3"], "no checkpoint of step 3 in RUN/checkpoints; there are 2, 4"),
        ([*EXTRACT, "--checkpoint=RUN", "--tokens=clss", "--layers=one"], "found 'clss', expected some of cls, patches, attention"),
        ([*EXTRACT, "--checkpoint=RUN", "--data=folder:none"], "folder:none"),
        ([*EVAL, "--checkpoint=RUN/3"], "RUN/3: it does not exist; the steps in RUN/checkpoints are 2, 4"),
        ([*EVAL, "--checkpoint=none.npz"], "none.npz: no such file"),
    ],
)
def test_a_mistake_is_told_before_jax_is_imported(arguments: list[str], sentence: str, run: Path):
    arguments = [argument.replace("RUN", str(run)) for argument in arguments]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert sentence.replace("RUN", str(run)) in done.stderr and "Traceback" not in done.stderr
    assert done.stdout.splitlines()[-1] == "code 2 False"
