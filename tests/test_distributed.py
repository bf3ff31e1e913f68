"""Several processes as one run: who joins whom, what is refused, and how they tell and agree."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from sere_jax import distributed


def test_a_single_process_starts_nothing(monkeypatch: pytest.MonkeyPatch):
    def never(*_: object, **__: object) -> None:
        raise AssertionError("initialised by accident")

    monkeypatch.setattr(jax.distributed, "initialize", never)
    for name in [name for name in os.environ if name.startswith(("SLURM_", "TPU_", "MEGASCALE_"))]:
        monkeypatch.delenv(name)
    assert distributed.start_distributed() is False
    # A batch script started without srun, and a step of one task.
    job = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    assert distributed.start_distributed() is False
    monkeypatch.setenv("SLURM_STEP_NODELIST", "localhost")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert distributed.start_distributed() is False
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    assert distributed.start_distributed() is False


def test_pods_and_slurm_are_recognised(monkeypatch: pytest.MonkeyPatch):
    calls: list[dict[str, object]] = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **given: calls.append(given))
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "h0,h1")
    assert distributed.start_distributed() is True and calls == [{}]
    slurm = {"JOB_ID": "7", "STEP_NODELIST": "n[1-2]", "NTASKS": "2", "PROCID": "1", "LOCALID": "0", "NNODES": "2", "GPUS_ON_NODE": "8"}
    for name, value in slurm.items():
        monkeypatch.setenv("SLURM_" + name, value)
    assert distributed.start_distributed() is True
    assert calls[1] == {"cluster_detection_method": "slurm", "local_device_ids": list(range(8))}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_processes": 2, "process_id": 0}, "coordinator as HOST:PORT"),
        ({"coordinator": "host", "num_processes": 2, "process_id": 0}, "coordinator as HOST:PORT"),
        ({"coordinator": "host:1"}, "num_processes of at least 1"),
        ({"coordinator": "host:1", "num_processes": 2, "process_id": 2}, "process_id from 0 to 1"),
    ],
)
def test_incomplete_flags_are_an_error(given: dict, message: str):
    with pytest.raises(distributed.DistributedError, match=message):
        distributed.start_distributed(**given)


_TWO_PROCESSES = """
import sys, numpy as np, jax
from sere_jax import distributed, sharding
flags, port, rank = sys.argv[1] == 'flags', sys.argv[2], int(sys.argv[3])
given = dict(coordinator='127.0.0.1:' + port, num_processes=2, process_id=rank) if flags else {}
assert distributed.start_distributed(**given)
assert jax.process_count() == 2 and len(jax.devices()) == 4 and jax.process_index() == rank
mesh = sharding.make_mesh(2)
rows = sharding.to_global({'x': np.arange(8, dtype=np.float32) + 8 * rank, 'empty': np.zeros((8, 0, 3)), 'none': None}, mesh)
assert rows['x'].shape == (16,) and rows['empty'].shape == (16, 0, 3) and rows['none'] is None
weighted = jax.jit(lambda x: (x * (jax.numpy.arange(16) + 1)).sum())(rows['x'])
assert float(weighted) == sum(i * (i + 1) for i in range(16)), weighted
print('agreed')
"""


@pytest.mark.parametrize("start", [pytest.param("flags", marks=pytest.mark.slow), "slurm"])  # the other tests of two processes use flags
def test_two_processes_put_process_zeros_rows_first(start: str):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environ = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    if start == "slurm":  # JAX takes the port from the job's number
        environ |= {"SLURM_JOB_ID": str(int(port) % 4096), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    processes = []
    for rank in (0, 1):
        mine = environ | ({"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} if start == "slurm" else {})
        command = [sys.executable, "-c", _TWO_PROCESSES, start, port, str(rank)]
        root = Path(__file__).parent.parent
        processes.append(subprocess.Popen(command, env=mine, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert all("agreed" in output for output in outputs), "\n".join(outputs)
