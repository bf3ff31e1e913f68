"""train.py as a user runs it: real processes, real data workers, real checkpoints, real signals."""

from __future__ import annotations

import json
import os
import random
import shutil
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
from sere_jax import sharding
from sere_jax.build import pretraining
from sere_jax.commands import pretrain
from sere_jax.commands.in_loop import InLoop
from sere_jax.config.check import ConfigError
from sere_jax.config.launch import Launch
from sere_jax.config.names import flatten
from sere_jax.data.sources.open import open_source
from sere_jax.train.checkpoint import read_state
from sere_jax.train.fit import Stopped
from tests import micro
from tests.evals import micro_network
from tests.processes import free_port

ROOT = Path(__file__).resolve().parents[2]

# Quickstart's method, data and loop with a network that compiles in seconds.
MICRO = {
    "views.global_size": 16,
    "views.local_size": 8,
    "views.local_count": 1,
    "model.width": 48,
    "model.depth": 2,
    "model.heads": 3,
    "model.patch_size": 4,
    "model.drop_path": 0.1,
    "head.prototypes": 64,
    "head.hidden": 32,
    "head.bottleneck": 16,
    "relation.global_points": 4,
    "relation.local_points": 2,
    "data.batch_size": 16,
    "optimizer.warmup_epochs": 0,
    "optimizer.freeze_last_layer_epochs": 0,
    "run.log_every_steps": 1,
    "run.eval_every_steps": 0,
}

# The same loop on a method that compiles in a third of the time: what a run does around its steps needs no more.
DRIVER = MICRO | {
    "recipe": "dino",
    "views.local_count": 0,
    "views.local_size": 96,
    "model.width": 24,
    "model.depth": 1,
    "model.patch_size": 8,
    "head.prototypes": 16,
    "head.hidden": 8,
    "head.bottleneck": 4,
    "photometry.jitter_prob": 0.0,
    "photometry.gray_prob": 0.0,
    "photometry.blur_prob": (0.0, 0.0, 0.0),
    "photometry.solarize_prob": (0.0, 0.0, 0.0),
    # What is never read has to keep its default.
    "photometry.brightness": 0.4,
    "photometry.contrast": 0.4,
    "photometry.saturation": 0.2,
    "photometry.hue": 0.1,
    "views.local_scale": (0.05, 0.35),
    "relation.sampling_impl": "map_coordinates",
    "relation.global_points": 13,
    "relation.local_points": 6,
}


def command(workdir: Path, *extra: str, **changes: object) -> list[str]:
    keys = MICRO | {key.replace("__", "."): value for key, value in changes.items()}
    flags = [f"--config.{key}={value}" for key, value in keys.items()]
    return [sys.executable, "train.py", "--config=configs/quickstart.py", f"--workdir={workdir}", *flags, *extra]


def environment(devices: int = 1, **more: str) -> dict[str, str]:
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags} | more


def run(arguments: list[str], **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(arguments, cwd=ROOT, env=environment(**env), capture_output=True, text=True, timeout=900)


def records(workdir: Path) -> dict[int, dict]:
    return {row["step"]: row for row in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())}


def launched(workdir: Path) -> dict:
    return json.loads((workdir / "launch.json").read_text())


def test_train_stop_go_on_and_refuse_another_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Real runs in one process: stopped by a signal at step 3, gone on with, finished; another config is refused."""
    config = quickstart.get_config()
    config.update_from_flattened_dict(DRIVER | {"schedule.total_steps": 5, "run.checkpoint_every_steps": 2, "run.eval_every_steps": 3})
    monkeypatch.setenv("HOME", str(tmp_path))

    def score(params: Any) -> Iterator[tuple[str, float]]:
        yield "sum", float(jax.tree.leaves(params)[0].sum())

    def stop(params: Any) -> Iterator[tuple[str, float]]:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        yield "sum", 0.0

    launch = Launch(
        frozenset({"run.log_every_steps"}), file="configs/quickstart.py:x", values=flatten(config) | {"run.eval_every_steps": 9}
    )
    whole = pretrain.train(config, str(tmp_path / "a"), lambda _: {"score": InLoop(score)})
    with pytest.raises(Stopped, match="after step 3 of 5"):
        pretrain.train(config, str(tmp_path / "b"), lambda _: {"score": InLoop(stop)}, launch=launch)
    following = {"run.eval_every_steps": {"file": 9, "run": 3, "by": "what follows from it"}}
    assert launched(tmp_path / "b") == {"config_file": "configs/quickstart.py:x", "changed": following}
    config.run.log_every_steps, logged = config.run.log_every_steps + 1, config.run.log_every_steps
    resumed = pretrain.train(config, "~/b", lambda _: {"score": InLoop(score)}, launch=launch)
    changed = {"run.log_every_steps": {"file": logged, "run": logged + 1, "by": "command line"}}
    assert launched(tmp_path / "b")["changed"] == following | changed  # of the newest start, as config.json is
    config.run.log_every_steps = logged
    assert launched(tmp_path / "a") == {"config_file": "", "changed": {}}
    micro.assert_equal(micro.copies(resumed), micro.copies(whole))
    steps = [json.loads(line)["step"] for line in (tmp_path / "b" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5] and {"sum", "loss"} <= records(tmp_path / "b")[3].keys()
    done = [[json.loads(line) for line in (tmp_path / run / "checkpoints" / "evaluations.jsonl").read_text().splitlines()] for run in "ab"]
    assert [entry["step"] for entry in done[0]] == [3, 5] and done[0] == done[1]
    assert json.loads((tmp_path / "a" / "config.json").read_text())["schedule"]["total_steps"] == 5
    assert list((tmp_path / "a" / "tensorboard").iterdir())
    config.data.source = "bundled:query"
    with pytest.raises(ConfigError, match=r"(?s)the images have changed since step 5.* new: .* gone: .*accept_changed_data=True"):
        pretrain.train(config, str(tmp_path / "a"))
    config.seed = 7
    with pytest.raises(ConfigError, match=r"seed: saved 0, now 7"):
        pretrain.train(config, str(tmp_path / "a"))


def assert_same_end(found: Path, expected: Path, step: int) -> None:
    """All of the states, bit by bit: parameters, teacher, optimizer, center and BatchNorm statistics."""
    (a, at), (b, _) = read_state(found), read_state(expected)
    assert at == step
    assert {"params", "opt_state", "batch_stats", "method"} <= a.keys()
    assert {"teacher", "objective", "teacher_batch_stats"} <= a["method"].keys()
    micro.assert_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_killed_at_random_times_and_restarted_ends_in_the_same_bits(tmp_path: Path, seed: int):
    """SIGKILL from another process, with data workers, a save at every second step so that some kills hit one."""
    total, settings = 60, {"schedule__total_steps": 60, "run__checkpoint_every_steps": 2, "data__workers": 2}
    assert run(command(tmp_path / "whole", **settings)).returncode == 0
    rng, kills, redone = random.Random(seed), 0, 0
    workdir = tmp_path / "killed"
    while True:
        process = subprocess.Popen(
            command(workdir, **settings), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        before = _newest(workdir)
        deadline = time.time() + 900
        while kills < 4 and process.poll() is None and _newest(workdir) <= before and time.time() < deadline:
            time.sleep(0.02)  # until this process has saved something of its own
        if kills < 4 and process.poll() is None:
            time.sleep(rng.uniform(0.0, 0.6))
            seen = max(records(workdir), default=0)
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            redone += seen > _newest(workdir)
            continue
        assert process.wait(timeout=900) == 0
        break
    assert kills >= 3 and redone >= 1
    assert_same_end(workdir, tmp_path / "whole", total)


def _newest(workdir: Path) -> int:
    folder = workdir / "checkpoints"
    return max((int(entry.name) for entry in folder.iterdir() if entry.name.isdigit()), default=0) if folder.is_dir() else 0


def run_two(workdir: Path, how: str, **changes: object) -> None:
    """Two processes on loopback, started by explicit flags or as Slurm would start them."""
    port, processes = free_port(), []
    for rank in range(2):
        if how == "flags":
            extra, env = [f"--coordinator=127.0.0.1:{port}", "--num_processes=2", f"--process_id={rank}"], {}
        else:
            extra = []
            env = {
                "SLURM_JOB_ID": str(port),  # JAX derives the coordinator's port from it
                "SLURM_STEP_NODELIST": "localhost",
                "SLURM_NTASKS": "2",
                "SLURM_STEP_NUM_TASKS": "2",
                "SLURM_PROCID": str(rank),
                "SLURM_LOCALID": str(rank),
                "SLURM_STEP_NUM_NODES": "1",
            }
        processes.append(subprocess.Popen(command(workdir, *extra, **changes), cwd=ROOT, env=environment(**env), stdout=subprocess.DEVNULL))
    assert [process.wait(timeout=300) for process in processes] == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["flags", "slurm"])
def test_two_processes_train_save_and_resume_the_same_numbers(tmp_path: Path, how: str):
    settings = {"schedule__total_steps": 8, "run__checkpoint_every_steps": 4, "run__keep_checkpoints": 5}
    run_two(tmp_path / "two", how, **settings)
    assert run(command(tmp_path / "one", **settings), devices=2).returncode == 0
    two, one = records(tmp_path / "two"), records(tmp_path / "one")
    # One process with two devices sums in another order; eight steps of Adam keep that near rounding.
    losses = [[found[step]["loss"] for step in range(1, 9)] for found in (two, one)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    # The same two processes again, from the middle: the same bits.
    shutil.copytree(tmp_path / "two" / "checkpoints" / "4", tmp_path / "again" / "checkpoints" / "4")
    run_two(tmp_path / "again", how, **settings)
    assert_same_end(tmp_path / "again", tmp_path / "two", 8)


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_goes_on(tmp_path: Path):
    settings = {"schedule__total_steps": 400, "run__checkpoint_every_steps": 1000}
    process = subprocess.Popen(command(tmp_path / "a", **settings), cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True)
    while not (tmp_path / "a" / "metrics.jsonl").exists() or len(records(tmp_path / "a")) < 5:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "stopped by SIGTERM" in out
    step = _newest(tmp_path / "a")
    assert 5 <= step < 400
    assert run(command(tmp_path / "a", **(settings | {"run__log_every_steps": 100}))).returncode == 0
    assert _newest(tmp_path / "a") == 400


def test_mistakes_are_listed_together_and_nothing_starts(tmp_path: Path):
    """Those of the flags, of the config's argument and of the config. JAX is not imported, so that the number of devices is unknown."""
    arguments = command(tmp_path / "a", "--config.data.batch=3", "stray", data__batch_size=15, model__patch_size=5, relation__alpha="nan")
    arguments += ["--config.optimizer.accumulate_steps=2"]
    arguments[2] += ":nonsense=1,epochs=x,source=folder:/nowhere"
    done = run(arguments)
    assert done.returncode == 2 and not (tmp_path / "a").exists()
    assert done.stderr.startswith("9 mistakes, nothing was started:\n")
    for part in (
        "nonsense: unknown key",
        "schedule.epochs: found 'x'",
        "data.source: found 'folder:/nowhere'",
        "data.batch: unknown key",
        "stray: found a positional argument",
        "data.batch_size: found 15",
        "views.global_size",
        "relation.alpha: found nan",
    ):
        assert part in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("recipe", "impl", "said"), [("dino_sere", "map_coordinates", True), ("dino_sere", "auto", False), ("dino", "map_coordinates", False)]
)
def test_a_run_on_a_cpu_says_that_it_could_sample_for_less(recipe: str, impl: str, said: bool):
    config, source = micro.config({"relation": {"sampling_impl": impl}}, recipe=recipe), open_source("bundled")
    state = pretraining.abstract_state(config, micro.LENGTH)
    lines = list(pretrain.describe(config, micro.LENGTH, source, sharding.make_mesh(1, jax.devices()[:1]), state))
    assert any("relation.sampling_impl=auto" in line for line in lines) == said


def test_data_that_fills_no_batch_is_a_mistake_like_others(tmp_path: Path):
    """It is known once the data is open, still before anything is compiled."""
    done = run(command(tmp_path / "a", data__source=f"folder:{micro_network.photographs(tmp_path / 'photos', count=5)}"), devices=2)
    assert done.returncode == 2 and not (tmp_path / "a").exists()
    assert done.stderr.startswith("1 mistake in the config:\n  data.batch_size: found 16, expected at most the 5 images of 'folder:")
    assert done.stderr.endswith("; nearest: 4\n")


def test_a_workdir_in_an_unsupported_bucket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    config = quickstart.get_config("eval_every_steps=0")
    config.update_from_flattened_dict(MICRO)
    with pytest.raises(ConfigError, match="--workdir: found 's3://bucket/a', expected a directory or gs://BUCKET/NAME"):
        pretrain.train(config, "s3://bucket/a")
    assert not list(tmp_path.iterdir())
