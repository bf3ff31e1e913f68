"""The mesh, the rules of leaves, and host -> global rows. Eight fake CPU devices (conftest)."""

from __future__ import annotations

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
