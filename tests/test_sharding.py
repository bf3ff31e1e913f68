"""The mesh, the rules of leaves, host -> global rows, and who joins whom. Eight fake CPU devices (conftest)."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from sere_jax import sharding
from sere_jax.types import Views


def _views(rows: int, local: int = 2) -> Views:
    images = np.arange(rows * 2 * 4 * 4 * 3, dtype=np.uint8).reshape(rows, 2, 4, 4, 3)
    return Views(
        images,
        np.zeros((rows, local, 2, 2, 3), np.uint8),
        np.random.default_rng(0).random((rows, 2 + local, 4), np.float32),
        np.zeros((rows, 2 + local), bool),
        np.arange(rows, dtype=np.int32),
        np.zeros(rows, bool),
    )


def test_mesh_uses_all_devices_in_order_and_refuses_what_does_not_divide():
    mesh = sharding.make_mesh(2)
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2}
    assert [device.id for device in mesh.devices.flat] == sorted(device.id for device in jax.devices())
    with pytest.raises(ValueError, match=r"found 3.*divisor of the 8 devices.*nearest: 2"):
        sharding.make_mesh(3)


@pytest.mark.parametrize("local", [0, 2])
def test_rows_keep_their_order_and_none_and_empty_leaves_pass(local: int):
    mesh = sharding.make_mesh(2)
    views = _views(16, local)
    on_device = sharding.to_global(views, mesh)
    assert on_device.masks is None
    for name, rows in views._asdict().items():
        if rows is not None:
            got = getattr(on_device, name)
            assert got.shape == rows.shape and got.dtype == rows.dtype, name
            np.testing.assert_array_equal(np.asarray(got), rows)
    first = next(shard for shard in on_device.index.addressable_shards if shard.device == mesh.devices.flat[0])
    np.testing.assert_array_equal(np.asarray(first.data), [0, 1])


def test_rows_that_do_not_divide_are_named():
    with pytest.raises(ValueError, match=r"batch\.global_views: found shape \(12, .*8 devices"):
        sharding.to_global(_views(12), sharding.make_mesh())


def test_fsdp_cuts_the_largest_divisible_dimension_of_large_leaves_only():
    mesh = sharding.make_mesh(4)

    def spec(*shape: int) -> PartitionSpec:
        return sharding.leaf_sharding(shape, mesh, min_size=64).spec

    assert spec(8, 16) == PartitionSpec(None, "fsdp")
    assert spec(16, 8) == PartitionSpec("fsdp")
    assert spec(10, 16, 3) == PartitionSpec(None, "fsdp")
    assert spec(63) == PartitionSpec() and spec(63, 3) == PartitionSpec() and spec() == PartitionSpec()
    assert spec(0, 1024) == PartitionSpec()
    assert sharding.leaf_sharding((16, 16), sharding.make_mesh(1), min_size=1).spec == PartitionSpec()


def test_moments_and_teacher_are_cut_like_the_parameters():
    params = {"a": jax.ShapeDtypeStruct((8, 32), jnp.float32), "b": jax.ShapeDtypeStruct((3,), jnp.float32)}
    state = {"params": params, "teacher": params, "opt": (params, {"nu": params})}
    cut = sharding.state_shardings(state, sharding.make_mesh(2), min_size=8)
    assert cut["params"] == cut["teacher"] == cut["opt"][0] == cut["opt"][1]["nu"]
    assert cut["params"]["a"].spec == PartitionSpec(None, "fsdp") and cut["params"]["b"].spec == PartitionSpec()


def test_a_single_process_starts_nothing(monkeypatch: pytest.MonkeyPatch):
    def never(*_: object, **__: object) -> None:
        raise AssertionError("initialised by accident")

    monkeypatch.setattr(jax.distributed, "initialize", never)
    for name in [name for name in os.environ if name.startswith(("SLURM_", "TPU_", "MEGASCALE_"))]:
        monkeypatch.delenv(name)
    assert sharding.start_distributed() is False
    # A batch script started without srun, and a step of one task.
    job = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    assert sharding.start_distributed() is False
    monkeypatch.setenv("SLURM_STEP_NODELIST", "localhost")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert sharding.start_distributed() is False
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    assert sharding.start_distributed() is False


def test_pods_and_slurm_are_recognised(monkeypatch: pytest.MonkeyPatch):
    calls: list[dict[str, object]] = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **given: calls.append(given))
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "h0,h1")
    assert sharding.start_distributed() is True and calls == [{}]
    slurm = {"JOB_ID": "7", "STEP_NODELIST": "n[1-2]", "NTASKS": "2", "PROCID": "1", "LOCALID": "0", "NNODES": "2", "GPUS_ON_NODE": "8"}
    for name, value in slurm.items():
        monkeypatch.setenv("SLURM_" + name, value)
    assert sharding.start_distributed() is True
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
    with pytest.raises(sharding.DistributedError, match=message):
        sharding.start_distributed(**given)


_TWO_PROCESSES = """
import sys, numpy as np, jax
from sere_jax import sharding
flags, port, rank = sys.argv[1] == 'flags', sys.argv[2], int(sys.argv[3])
given = dict(coordinator='127.0.0.1:' + port, num_processes=2, process_id=rank) if flags else {}
assert sharding.start_distributed(**given)
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
