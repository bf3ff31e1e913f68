"""A whole run in a bucket: the numbers of a run on a disk, every file in its place, and everything that reads a run reads it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from configs import quickstart
from configs.eval import knn
from sere_jax import load_backbone
from sere_jax.commands import evaluate, export, export_command, extract, pretrain
from sere_jax.commands.in_loop import InLoop
from sere_jax.data.sources.open import open_source
from sere_jax.evals.feature_files import read as read_features
from sere_jax.interop.files import read_tensors
from sere_jax.reporting import records
from sere_jax.train.checkpoint import CheckpointError, UnwritableCheckpoint, find_step, read_state
from sere_jax.train.checkpoint_manager import Checkpoints
from sere_jax.train.fit import Stopped
from sere_jax.weights.warm_start import read as read_warm_start
from sere_jax.writing import place
from tests import micro
from tests.commands.test_pretrain import DRIVER, ROOT, command, environment
from tests.processes import free_port

SETTINGS = {"schedule.total_steps": 5, "run.checkpoint_every_steps": 2, "run.eval_every_steps": 3}


def _names(directory: Any) -> set[str]:
    return {child.name for child in place(directory).iterdir()}


def _losses(workdir: str | Path) -> list[tuple[int, float]]:
    return [(record["step"], record["loss"]) for record in records.read(workdir)]


def _config() -> Any:
    config = quickstart.get_config()
    config.update_from_flattened_dict(DRIVER | SETTINGS)
    return config


def _score(params: Any) -> Iterator[tuple[str, float]]:
    yield "sum", float(jax.tree.leaves(params)[0].sum())


def _stop(params: Any) -> Iterator[tuple[str, float]]:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)
    yield "sum", 0.0


@pytest.fixture(scope="module")
def runs(server, tmp_path_factory) -> tuple[Path, str]:
    """The same run on a disk, and in the bucket, where it was stopped after step 3 and gone on with."""
    local, remote = tmp_path_factory.mktemp("runs"), "gs://bkt/runs/a"
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("cwd"))
    pretrain.train(_config(), str(local / "a"), lambda _: {"score": InLoop(_score)})
    with pytest.raises(Stopped, match="after step 3 of 5; its state is saved in gs://bkt/runs/a/checkpoints/3"):
        pretrain.train(_config(), remote, lambda _: {"score": InLoop(_stop)})
    pretrain.train(_config(), remote, lambda _: {"score": InLoop(_score)})
    assert not os.listdir()  # nothing went to a local directory named gs:
    os.chdir(before)
    return local / "a", remote


def test_the_numbers_are_those_of_a_run_on_a_disk(runs):
    local, remote = runs
    assert len(_losses(remote)) == 5 and _losses(remote) == _losses(local)
    (ours, step), (theirs, _) = read_state(remote), read_state(local)
    assert step == 5
    micro.assert_equal(ours, theirs)
    done = [[json.loads(line) for line in (place(run) / "checkpoints/evaluations.jsonl").read_text().splitlines()] for run in runs]
    assert [entry["step"] for entry in done[1]] == [3, 5] and done[0] == done[1]


def test_the_files_are_those_of_a_run_on_a_disk(runs):
    local, remote = runs
    assert _names(remote) == _names(local) - {".lock"}
    for name in ("checkpoints", "listings"):
        assert _names(f"{remote}/{name}") == _names(local / name)
    assert {name.partition(".tfevents")[0] for name in _names(f"{remote}/tensorboard")} == {"events.out"}
    assert len(_names(f"{remote}/tensorboard")) == 2  # one a start
    for name in ("config.json", "launch.json"):
        assert json.loads((place(remote) / name).read_text()) == json.loads((local / name).read_text())


def test_a_backbone_is_loaded_exported_and_extracted(runs, bucket, tmp_path, capsys):
    local, remote = runs
    backbone = load_backbone(remote)
    micro.assert_equal(backbone.params, load_backbone(local).params)
    for layout, name in (("timm", "a.safetensors"), ("npz", "a.npz"), ("dino", "a.pth")):
        if layout == "dino":
            pytest.importorskip("torch")
        assert export_command.main([f"--checkpoint={remote}", f"--output={bucket}/{name}", f"--format={layout}"]) == 0
        export.export(local, tmp_path / name, layout=layout)
        (theirs, _), (ours, _) = read_tensors(tmp_path / name), read_tensors(f"{bucket}/{name}")
        micro.assert_equal(ours, theirs)
    assert f"{bucket}/a.config.json" in capsys.readouterr().out
    micro.assert_equal(load_backbone(f"{bucket}/a.safetensors").params, backbone.params)
    written = extract.extract(backbone, open_source("bundled:query"), f"{bucket}/features", rows_per_file=8)
    description, columns = read_features(place(f"{bucket}/features"))
    assert written.images == description["rows"] == len(columns["cls"]) > 8 and np.isfinite(columns["cls"]).all()


def test_a_run_is_evaluated_and_started_from(runs, bucket):
    local, remote = runs
    config = knn.get_config("bundled")
    reports = []
    for run in (remote, str(local)):
        evaluate.run(config, [evaluate.load(run)], place(f"{bucket}/{len(reports)}"))
        reports.append(json.loads((place(f"{bucket}/{len(reports)}") / "eval" / "knn.json").read_text()))
    assert reports[0]["results"][0]["name"] == "a" and reports[0]["results"][0]["checkpoint"] == remote
    for report in reports:
        del report["results"][0]["checkpoint"]
    assert reports[0] == reports[1]
    start = _config()
    start.init_from = remote
    state = jax.eval_shape(lambda: micro.state(start))
    assert read_warm_start(start, state).leaves


def test_what_is_not_there_is_a_sentence(server, bucket):
    with pytest.raises(CheckpointError, match=f"^no checkpoint in {bucket}/none: it does not exist; expected"):
        find_step(f"{bucket}/none")
    with pytest.raises(CheckpointError, match="^s3://bucket/a cannot be read: expected a directory or gs://BUCKET/NAME; s3:// is not"):
        find_step("s3://bucket/a")
    server.fail(403, 20)
    with pytest.raises(CheckpointError, match=f"^{bucket}/none cannot be read: .*Forbidden"):
        find_step(f"{bucket}/none")


def test_a_checkpoint_that_cannot_be_written_is_a_sentence_and_older_ones_stay(server, bucket):
    with Checkpoints(f"{bucket}/checkpoints", every_steps=1) as checkpoints:
        checkpoints.save(1, {"x": np.arange(5.0)}, {}, force=True)
        checkpoints.wait()
        server.fail(503, 2, method="POST")  # tried again
        checkpoints.save(2, {"x": np.arange(5.0) + 2}, {}, force=True)
        checkpoints.wait()
        assert server.left() == 0
    server.fail(403, 1000, method="POST")
    message = f"^a checkpoint in {bucket}/checkpoints could not be written: .*; complete steps: 1, 2$"
    with pytest.raises(UnwritableCheckpoint, match=message), Checkpoints(f"{bucket}/checkpoints", every_steps=1) as checkpoints:
        checkpoints.save(3, {"x": np.arange(5.0) + 3}, {}, force=True)
    server.fail(403, 0)
    state, step = read_state(f"{bucket}/checkpoints")
    assert step == 2 and state["x"].tolist() == [2, 3, 4, 5, 6]


@pytest.mark.slow
def test_killed_at_random_times_and_restarted_ends_in_the_same_bits(server, bucket, tmp_path):
    """SIGKILL, with a save at every second step. The next starts are of a requeued Slurm job, which takes its own lease over; the last is
    by hand, and waits until the lease is stale."""
    settings = {"schedule__total_steps": 60, "run__checkpoint_every_steps": 2}
    assert subprocess.run(command(tmp_path / "whole", **settings), cwd=ROOT, env=environment()).returncode == 0
    rng = random.Random(0)
    with open(tmp_path / "errors", "w+b") as errors:
        for start in range(4):
            before = _newest(bucket)
            job = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(start)} if start < 3 else {}
            process = subprocess.Popen(command(bucket, **settings), cwd=ROOT, env=environment(**job, **server.environment), stderr=errors)
            if start == 3:
                assert process.wait(timeout=900) == 0
                break
            while process.poll() is None and _newest(bucket) <= before:
                time.sleep(0.2)  # until this process has saved something of its own
            time.sleep(rng.uniform(0.0, 1.0))
            assert process.poll() is None  # not ended before it was killed
            process.kill()
            process.wait()
    said = (tmp_path / "errors").read_text()
    assert said.count("taken over; going on in 40 s") == 3 and said.count("waiting 90 s for a sign of life") == 1
    micro.assert_equal(read_state(bucket)[0], read_state(tmp_path / "whole")[0])
    assert _losses(bucket) == _losses(tmp_path / "whole")  # no acknowledged step is lost


def _newest(workdir: str) -> int:
    try:
        return find_step(workdir)[1]
    except CheckpointError:
        return 0


@pytest.mark.slow
def test_two_processes_share_a_bucket(server, bucket, tmp_path):
    settings = {"schedule__total_steps": 6, "run__checkpoint_every_steps": 3}

    def train(workdir: str) -> None:
        port, processes = free_port(), []
        for rank in (0, 1):
            flags = [f"--coordinator=127.0.0.1:{port}", "--num_processes=2", f"--process_id={rank}"]
            processes.append(subprocess.Popen(command(workdir, *flags, **settings), cwd=ROOT, env=environment(**server.environment)))
        assert [process.wait(timeout=900) for process in processes] == [0, 0]

    train(str(tmp_path / "two"))
    train(bucket)
    assert _losses(bucket) == _losses(tmp_path / "two")
    micro.assert_equal(read_state(bucket)[0], read_state(tmp_path / "two")[0])


def test_compiled_code_is_kept_in_a_bucket(server, bucket):
    """As the JobSets of launch/ name it: JAX reads and writes there by itself."""
    script = (
        "import jax, jax.numpy as jnp; from sere_jax.commands import compiled; compiled.keep_compiled(); seen = []; "
        "jax.monitoring.register_event_listener(lambda name, **_: seen.append(name)); print(compiled.where()); "
        "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0); jax.jit(lambda x: x @ x + 1)(jnp.ones((8, 8))); "
        "print(seen.count('/jax/compilation_cache/cache_hits'))"
    )
    env = environment(JAX_COMPILATION_CACHE_DIR=f"{bucket}/jax-cache", **server.environment)
    hits = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0 and done.stdout.startswith(f"kept in {bucket}/jax-cache\n"), done.stderr
        hits.append(int(done.stdout.split()[-1]))
    assert hits[0] == 0 < hits[1] and any(name.endswith("-cache") for name in _names(f"{bucket}/jax-cache"))
