"""Evaluations and `init_from` on a damaged checkpoint, and an evaluation on a full disk: a sentence, the exit code, and nothing is left."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sere_jax.build import pretraining
from sere_jax.config.check import ConfigError
from sere_jax.weights import warm_start
from tests import micro, saved_run
from tests.commands.test_pretrain import ROOT, environment


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = micro.config({"masking": {"kind": "block"}})
    return saved_run.checkpoint(tmp_path_factory.mktemp("run"), config, saved_run.state(config))


@pytest.fixture
def damaged(sound: Path, tmp_path: Path) -> Path:
    """A copy whose arrays were cut short."""
    run = Path(shutil.copytree(sound, tmp_path / "damaged"))
    path = run / "checkpoints" / str(saved_run.STEP) / "state" / "manifest.ocdbt"
    path.write_bytes(path.read_bytes()[:30])
    return run


def evaluate(checkpoint: Path, workdir: Path, bytes_a_file: int = -1) -> subprocess.CompletedProcess:
    command = [sys.executable, "eval.py", "--config=configs/eval/knn.py:bundled", f"--checkpoint={checkpoint}", f"--workdir={workdir}"]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_a_file, bytes_a_file))

    environ = environment(JAX_ENABLE_COMPILATION_CACHE="false")
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=300, preexec_fn=limit)


def test_a_run_does_not_begin_from_a_damaged_checkpoint(damaged: Path):
    config = micro.config(init_from=str(damaged))
    with pytest.raises(ConfigError) as error:
        warm_start.read(config, pretraining.abstract_state(config, micro.LENGTH))
    message = str(error.value)
    assert f"init_from: found '{damaged}': the checkpoint of step {saved_run.STEP} in {damaged}/checkpoints is damaged" in message
    assert f"{damaged}/checkpoints/{saved_run.STEP}/state/manifest.ocdbt: Error decoding manifest" in message


@pytest.mark.slow
def test_an_evaluation_of_a_damaged_checkpoint_ends_in_a_sentence(damaged: Path, tmp_path: Path):
    done = evaluate(damaged, tmp_path / "out")
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert done.stderr.count("\n") == 1 and "is damaged: its arrays cannot be read (leaf " in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("size", "code"), [(0, 2), (4096, 0), (400, 2)])
def test_an_evaluation_on_a_full_disk_ends_in_a_sentence(sound: Path, tmp_path: Path, size: int, code: int):
    done = evaluate(sound, tmp_path / "out", size)
    assert done.returncode == code, done.stderr
    files = [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert files == (["knn.json", "knn.json"] if code == 0 else [])
    if code:
        assert done.stderr == f"{tmp_path}/out: nothing can be written there (File too large); expected a directory to write to\n"
