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
from tests.processes import free_port


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


@pytest.mark.parametrize("platforms", [None, "", "cpu", "cuda,cpu"])
@pytest.mark.parametrize("start", ["flags", "slurm", "already started"])
def test_collectives_on_cpus_run_in_one_order_whatever_the_platforms_are(
    monkeypatch: pytest.MonkeyPatch, start: str, platforms: str | None
):
    """XLA's concurrent scheduler mixes the data of collectives between processes; losses become NaN at random."""
    flags_seen: list[str] = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: flags_seen.append(os.environ["XLA_FLAGS"]))
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: start == "already started")
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/tmp/x")
    if platforms is None:
        monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    else:
        monkeypatch.setenv("JAX_PLATFORMS", platforms)
    if start == "slurm":
        for name, value in {"JOB_ID": "7", "STEP_NODELIST": "n[1-2]", "NTASKS": "2", "PROCID": "1", "LOCALID": "0"}.items():
            monkeypatch.setenv("SLURM_" + name, value)
    arguments = {"coordinator": "127.0.0.1:1234", "num_processes": 2, "process_id": 1} if start == "flags" else {}
    for _ in range(2):
        assert distributed.start_distributed(**arguments) is True
    ordered = "--xla_dump_to=/tmp/x --xla_cpu_enable_concurrency_optimized_scheduler=false"
    assert os.environ["XLA_FLAGS"] == ordered and set(flags_seen) <= {ordered}


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET, ""), (socket.AF_INET6, "::1")])
def test_a_coordinator_s_port_that_is_taken_is_a_sentence(family: socket.AddressFamily, address: str):
    """A real listener. JAX itself would end the process in C++."""
    with socket.socket(family) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            other.bind((address, 0))
        except OSError:
            pytest.skip("this machine has no such address")
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(distributed.DistributedError, match=f"--coordinator: port {port} of this machine is taken .*; expected a free"):
            distributed.start_distributed(coordinator=f"localhost:{port}", num_processes=2, process_id=0)
        assert not jax.distributed.is_initialized()


def test_a_port_that_slurm_s_job_number_leads_to_may_be_taken_too(monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as other:
        job = next(job for job in range(4096) if _binds(other, 61440 + job))
        other.listen()
        for name, value in {"JOB_ID": str(8192 + job), "STEP_NODELIST": "n[1-2]", "NTASKS": "2", "PROCID": "0", "LOCALID": "0"}.items():
            monkeypatch.setenv("SLURM_" + name, value)
        with pytest.raises(distributed.DistributedError, match=f"port of this Slurm job: port {61440 + job} of this machine is taken"):
            distributed.start_distributed()


def _binds(server: socket.socket, port: int) -> bool:
    try:
        server.bind(("", port))
    except OSError:
        return False
    return True


def test_a_coordinator_that_no_name_server_knows_is_a_sentence():
    with pytest.raises(distributed.DistributedError, match="found the host 'no-such-host.invalid', which cannot be resolved"):
        distributed.start_distributed(coordinator="no-such-host.invalid:1234", num_processes=2, process_id=1)


_TWO_PROCESSES = """
import sys, numpy as np, jax
from sere_jax import buckets, distributed, sharding
flags, port, rank = sys.argv[1] == 'flags', sys.argv[2], int(sys.argv[3])
given = dict(coordinator='127.0.0.1:' + port, num_processes=2, process_id=rank) if flags else {}
assert distributed.start_distributed(**given)
assert jax.process_count() == 2 and len(jax.devices()) == 4 and jax.process_index() == rank
mesh = sharding.make_mesh(2)
rows = sharding.to_global({'x': np.arange(8, dtype=np.float32) + 8 * rank, 'empty': np.zeros((8, 0, 3)), 'none': None}, mesh)
assert rows['x'].shape == (16,) and rows['empty'].shape == (16, 0, 3) and rows['none'] is None
weighted = jax.jit(lambda x: (x * (jax.numpy.arange(16) + 1)).sum())(rows['x'])
assert float(weighted) == sum(i * (i + 1) for i in range(16)), weighted
assert distributed.gather_lines(['of both', f'of {rank}', 'é \\udce9']) == ['of both', 'of 0', 'é \\udce9', 'process 1: of 1']
try:
    with distributed.together():
        raise ValueError(f'of {rank}') if rank else KeyError()
except (KeyError if rank == 0 else distributed.OtherProcessError) as error:
    assert not buckets.is_outage(error)
try:
    with distributed.together():
        if rank == 0:
            try:
                raise buckets.Outage(5, 'the bucket does not answer')
            except OSError as outage:
                raise KeyError from outage
except (KeyError if rank == 0 else distributed.OtherProcessError) as error:
    assert buckets.is_outage(error)
    print('agreed')
"""


@pytest.mark.parametrize("start", [pytest.param("flags", marks=pytest.mark.slow), "slurm"])  # the other tests of two processes use flags
def test_two_processes_put_process_zeros_rows_first(start: str):
    port = str(free_port())
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


@pytest.mark.slow  # the imports of two whole programs; the test of two processes above gathers lines and fails together
def test_two_processes_print_a_list_of_mistakes_once(tmp_path: Path):
    """The real program, each process with a mistake of its own beside the one of both; nothing is compiled."""
    port = free_port()
    processes = []
    for rank in (0, 1):
        command = [
            sys.executable,
            "train.py",
            "--config=configs/quickstart.py",
            f"--workdir={tmp_path / 'run'}",
            "--config.relation.alpha=nan",
        ]
        command += [f"--coordinator=127.0.0.1:{port}", "--num_processes=2", f"--process_id={rank}", f"--config.data.batch_size={31 + rank}"]
        root = Path(__file__).parent.parent
        environ = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
        processes.append(subprocess.Popen(command, env=environ, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], errors
    assert (errors[0] + errors[1]).count("relation.alpha: found nan") == 1, errors
    assert "data.batch_size: found 31" in errors[0] and "mistake" not in errors[1], errors
    assert not (tmp_path / "run").exists()
