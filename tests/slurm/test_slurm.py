"""launch/slurm.sbatch on a real Slurm (`make test-slurm`): to the end, stopped and requeued at bad moments, cancelled, mistaken."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from itertools import compress
from pathlib import Path

import pytest

from sere_jax.reporting import records
from sere_jax.train.checkpoint import CheckpointError, find_step
from tests.commands.test_ablate import MICRO as ABLATION
from tests.commands.test_pretrain import DRIVER, ROOT, command, environment
from tests.evals import micro_network
from tests.slurm import cluster

pytestmark = pytest.mark.slow
SETTINGS = {key.replace(".", "__"): value for key, value in DRIVER.items()} | {
    "schedule__total_steps": 12,
    "run__checkpoint_every_steps": 4,
}


class Slurm:
    def __init__(self, environ: dict[str, str]) -> None:
        self.environ = environ

    def run(self, *command: str) -> str:
        done = subprocess.run(command, env=self.environ, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def submit(self, workdir: Path, *options: str, **changes: object) -> str:
        """Submit the template; the number of the job. Its log is WORKDIR.log."""
        flags = command(workdir, **(SETTINGS | changes))[4:]
        script = ["launch/slurm.sbatch", "configs/quickstart.py", str(workdir), *flags]
        return self.run("sbatch", "--parsable", f"--output={workdir}.log", *options, *script).strip()

    def facts(self, job: str) -> dict[str, str]:
        """What Slurm says of a job."""
        return dict(re.findall(r"(\w+)=(\S+)", self.run("scontrol", "show", "job", "-o", job)))

    def wait(self, job: str, *states: str, seconds: float = 900) -> dict[str, str]:
        """Until the job is in one of the states."""
        until(lambda: self.facts(job)["JobState"] in states, seconds, lambda: str(self.facts(job)))
        return self.facts(job)

    def restart_now(self, job: str, restarts: int) -> None:
        """Slurm lets a requeued job wait for two minutes; a test does not."""
        until(lambda: self.facts(job)["Restarts"] == str(restarts) and self.facts(job)["JobState"] == "PENDING", 400)
        time.sleep(2)  # Slurm revokes the credential of a job that starts in the second of its requeue
        self.run("scontrol", "update", f"JobId={job}", "StartTime=now")


def until(true: Callable[[], bool], seconds: float = 400, what: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, what()
        time.sleep(0.3)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    if reason := cluster.missing():
        pytest.skip(reason)
    with cluster.running(tmp_path_factory.mktemp("slurm")) as environ:
        yield Slurm(environment() | {"SLURM_CONF": environ["SLURM_CONF"]})


def log(workdir: Path) -> str:
    path = Path(f"{workdir}.log")
    return path.read_text(errors="replace") if path.exists() else ""


def losses(workdir: Path) -> list[tuple[int, float]]:
    return [(record["step"], record["loss"]) for record in records.read(workdir)]


def newest(workdir: Path) -> int:
    try:
        return find_step(workdir)[1]
    except CheckpointError:
        return 0


@pytest.mark.parametrize(
    ("options", "nodes"),
    [
        ((), "4"),  # as the template stands: 4 nodes, a task each
        (("--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=8", "--gpus-per-node=2"), "2"),  # a task a GPU
    ],
)
def test_four_processes_run_to_the_end(slurm: Slurm, tmp_path: Path, options: tuple[str, ...], nodes: str):
    job = slurm.submit(tmp_path / "a", *options)
    facts = slurm.wait(job, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
    assert facts["JobState"] == "COMPLETED" and facts["NumNodes"] == nodes, log(tmp_path / "a")
    assert newest(tmp_path / "a") == 12 and "4 x cpu" in log(tmp_path / "a")


@pytest.mark.parametrize("nodes", [1, 2])
def test_signals_while_compiling_training_and_restoring_lose_nothing(slurm: Slurm, tmp_path: Path, nodes: int):
    """The signal that the time limit sends, at the moments that hurt; each time saved, requeued and resumed."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    length = {"schedule__total_steps": 600, "run__log_every_steps": 20, "run__checkpoint_every_steps": 200}  # some seconds of steps
    first = slurm.submit(whole, f"--nodes={nodes}", **length)
    job = slurm.submit(stopped, f"--nodes={nodes}", **length)
    moments = [
        lambda: log(stopped).count("learning  ") == 1,  # said just before compiling
        lambda: (stopped / "metrics.jsonl").exists() and len(losses(stopped)) >= 3,
        lambda: log(stopped).count("learning  ") == 3,  # just before restoring
    ]
    for restarts, moment in enumerate(moments, 1):
        until(moment, 600, lambda: log(stopped))
        slurm.run("scancel", "--batch", "--signal=USR1", job)
        slurm.restart_now(job, restarts)
    facts = slurm.wait(job, "COMPLETED", "FAILED", "CANCELLED")
    assert facts["JobState"] == "COMPLETED" and facts["Restarts"] == "3", log(stopped)
    assert slurm.wait(first, "COMPLETED", "FAILED")["JobState"] == "COMPLETED", log(whole)
    # A line is the mean of 20 steps; the first one after a restart is of those since then.
    stops = [int(step) for step in re.findall(r"stopped by SIGTERM after step (\d+)", log(stopped))]
    same = [not any(step - 20 < stop < step for stop in stops) for step, _ in losses(whole)]
    assert len(losses(stopped)) == len(losses(whole)) == 30 and sum(same) >= 27
    assert list(compress(losses(stopped), same)) == list(compress(losses(whole), same))
    assert log(stopped).count("after the signal; --signal has to give more") == 3
    assert "Exception ignored" not in log(stopped)
    assert "stop         SIGTERM at step" in log(stopped) and "% of" in log(stopped)  # goodput


@pytest.mark.parametrize("nodes", [1, 2])
def test_the_time_limit_saves_requeues_resumes_and_finishes(slurm: Slurm, tmp_path: Path, nodes: int):
    """Slurm's own clock, which sends the signal up to a minute early: 30 to 90 s after the start."""
    pilot, whole, limited = (tmp_path / name for name in ("pilot", "whole", "limited"))
    often = {"run__log_every_steps": 1, "run__checkpoint_every_steps": 10**5}
    job = slurm.submit(pilot, f"--nodes={nodes}", **often | {"schedule__total_steps": 600})
    assert slurm.wait(job, "COMPLETED", "FAILED")["JobState"] == "COMPLETED", log(pilot)
    times = [record["time"] for record in records.read(pilot)]
    steps = round(100 * 500 / (times[-1] - times[-501]))  # more than a limit allows, whatever the machine
    first = slurm.submit(whole, f"--nodes={nodes}", **often | {"schedule__total_steps": steps})
    job = slurm.submit(limited, f"--nodes={nodes}", "--time=2", "--signal=B:USR1@30", **often | {"schedule__total_steps": steps})
    restarts = 0
    while slurm.wait(job, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "PENDING")["JobState"] == "PENDING":
        restarts += 1
        slurm.restart_now(job, restarts)
        step = newest(limited)  # the signal may also come when the last one is done
        assert any(text in log(limited) for text in (f"stopped by SIGTERM after step {step} of", f"finished: step {step:,} is saved"))
        slurm.wait(job, "RUNNING")
    assert slurm.facts(job)["JobState"] == "COMPLETED" and restarts >= 1, log(limited)
    assert slurm.wait(first, "COMPLETED", "FAILED")["JobState"] == "COMPLETED", log(whole)
    assert len(losses(whole)) == steps and losses(limited) == losses(whole)


def test_scancel_saves_and_is_not_requeued(slurm: Slurm, tmp_path: Path):
    workdir = tmp_path / "a"
    job = slurm.submit(workdir, "--nodes=1", schedule__total_steps=10**6, run__checkpoint_every_steps=10**5)
    until(lambda: (workdir / "metrics.jsonl").exists() and len(losses(workdir)) >= 3, 400, lambda: log(workdir))
    slurm.run("scancel", job)
    facts = slurm.wait(job, "CANCELLED", "COMPLETED", "FAILED", seconds=90)
    assert facts["JobState"] == "CANCELLED" and facts["Restarts"] == "0"
    until(lambda: newest(workdir) >= 3, 30)


def test_a_mistake_is_not_repeated(slurm: Slurm, tmp_path: Path):
    job = slurm.submit(tmp_path / "a", "--nodes=2", relation__alpha="nan")
    facts = slurm.wait(job, "FAILED", "COMPLETED", "CANCELLED")
    # One task ends with 2, and Slurm may end the other, whose code then is the job's.
    assert (facts["JobState"], facts["Restarts"]) == ("FAILED", "0") and facts["ExitCode"] in ("2:0", "143:0"), facts
    assert log(tmp_path / "a").count("relation.alpha: found nan") == 1


def test_an_array_job_runs_a_table_of_ablations(slurm: Slurm, tmp_path: Path):
    """Three rows on three nodes. The last, whose own number is that of the array, is stopped and queued again without the others."""
    workdir, alone = tmp_path / "table8", tmp_path / "alone"
    command = ["--table=8", "--rows=none,channel,image_channel", "--size=small", "--data=bundled", "--steps=400"]
    command += [f"--set={ABLATION},run.log_every_steps=20,run.checkpoint_every_steps=200"]
    command += ["--protocol=configs/eval/knn.py:bundled,neighbours=(10,)"]
    options = ["--parsable", "--array=0-2", "--cpus-per-task=8", f"--output={workdir}-%a.log"]
    job = slurm.run("sbatch", *options, "launch/slurm_array.sbatch", "ablate", *command, f"--workdir={workdir}").strip()
    table = [f"{ROOT}/.venv/bin/python", "-m", "sere_jax", "ablate", *command]
    whole = shlex.join([*table, f"--workdir={workdir}"])
    after = [f"--output={workdir}.log", f"--dependency=afterany:{job}", f"--wrap={whole} --table_only"]
    last = slurm.run("sbatch", "--parsable", *after).strip()
    until(lambda: any(len(losses(path.parent)) >= 3 for path in workdir.glob("rows/dino_channel-*/metrics.jsonl")), 600)
    slurm.run("scancel", "--batch", "--signal=USR1", f"{job}_2")
    slurm.restart_now(f"{job}_2", 1)
    assert slurm.wait(last, "COMPLETED", "FAILED", "CANCELLED")["JobState"] == "COMPLETED", log(workdir)
    tasks = [slurm.facts(f"{job}_{task}") for task in range(3)]
    assert [(task["JobState"], task["Restarts"]) for task in tasks] == [("COMPLETED", "0"), ("COMPLETED", "0"), ("COMPLETED", "1")]
    assert tasks[2]["JobId"] == job and "stopped by SIGTERM after step" in log(tmp_path / "table8-2")
    assert "Table 8" in log(workdir) and "training in" not in log(workdir)
    one = ["--parsable", "--array=1", *options[2:], "launch/slurm_array.sbatch", "ablate", *command, f"--workdir={workdir}"]
    again = slurm.run("env", "SHARDS=3", "sbatch", *one).strip()
    assert slurm.wait(f"{again}_1", "COMPLETED", "FAILED", "CANCELLED")["JobState"] == "COMPLETED"
    assert log(tmp_path / "table8-1").count("row channel, seed 0: finished") == 2
    done = subprocess.run([*table, f"--workdir={alone}"], env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert scores(workdir) == scores(alone) and len(scores(alone)) == 3


def test_an_array_job_prepares_a_set(slurm: Slurm, tmp_path: Path):
    """Three tasks that begin together write the shards, and a dependent job completes the set: the files of one machine."""
    out, alone = tmp_path / "out", tmp_path / "alone"
    photographs = micro_network.photographs(tmp_path / "in", count=24)
    command = ["prepare", f"--source=folder:{photographs}", "--records_per_shard=2", "--max_side=32"]
    options = ["--parsable", "--array=0-2", "--cpus-per-task=8", "--gpus-per-node=0", f"--output={tmp_path}/%a.log"]
    job = slurm.run("sbatch", *options, "launch/slurm_array.sbatch", *command, f"--output={out}").strip()
    program = [f"{ROOT}/.venv/bin/python", "-m", "sere_jax", *command]
    merge = shlex.join([*program, f"--output={out}", "--merge"])
    last = slurm.run("sbatch", "--parsable", f"--output={out}.log", f"--dependency=afterok:{job}", f"--wrap={merge}").strip()
    assert slurm.wait(last, "COMPLETED", "FAILED", "CANCELLED")["JobState"] == "COMPLETED", log(out)
    subprocess.run([*program, f"--output={alone}"], env=environment(), cwd=ROOT, check=True, timeout=300)
    files = {path.name: path.read_bytes() for path in alone.iterdir()}
    assert len([name for name in files if ".array_record-" in name]) >= 3
    assert {path.name: path.read_bytes() for path in out.iterdir()} == files


def scores(workdir: Path) -> list[float]:
    rows = json.loads((workdir / "table8.json").read_text())["rows"]
    return [value for row in rows for run in row["runs"] for value in run["values"].values()]


@pytest.mark.parametrize(
    ("options", "tasks_and_devices"),
    [
        (("-N2", "-n2", "--gpus-per-node=8"), "2 [0, 1, 2, 3, 4, 5, 6, 7]"),  # all of its node
        (("-N2", "-n4", "--gpus-per-node=2"), "4 None"),  # JAX's own choice for Slurm: a GPU a task
    ],
)
def test_a_task_takes_the_gpus_of_its_node_or_its_own(slurm: Slurm, options: tuple[str, ...], tasks_and_devices: str):
    probe = "import os; from sere_jax import distributed as d; print(d._slurm_tasks(os.environ), d._slurm_devices(os.environ))"
    lines = set(slurm.run("srun", *options, f"{ROOT}/.venv/bin/python", "-c", probe).splitlines())
    assert lines == {tasks_and_devices}
