"""A state that was saved with blocks one by one is restored with stacked blocks, and the reverse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sere_jax import sharding
from sere_jax.build import pretraining
from sere_jax.train import stacking
from sere_jax.train.checkpoint import CheckpointError, named_leaves
from sere_jax.train.checkpoint_manager import Checkpoints
from tests import micro

_BLOCK = {"attn": {"kernel": np.arange(128, dtype=np.float32).reshape(8, 16)}, "scale": np.arange(8, dtype=np.float32)}


def _state(stacked: bool, fsdp: int) -> Any:
    """Two blocks, the second 1000 above the first, and what Adam keeps of them; cut over `fsdp` devices."""
    layers = [jax.tree.map(lambda x, layer=layer: x + 1000 * layer, _BLOCK) for layer in range(2)]
    blocks = {"blocks": jax.tree.map(lambda *x: np.stack(x), *layers)} if stacked else {f"blocks_{i}": layers[i] for i in range(2)}
    params = {"backbone": blocks | {"norm": np.full(8, 5, np.float32)}}
    state = {"params": params, "opt_state": optax.scale_by_adam().init(params)._replace(mu=jax.tree.map(np.negative, params))}
    return jax.device_put(state, sharding.state_shardings(state, sharding.make_mesh(fsdp), min_size=64))


@pytest.mark.parametrize("saved_stacked", [False, True])
def test_every_layer_comes_back_in_the_other_layout(tmp_path: Path, saved_stacked: bool):
    wanted = _state(not saved_stacked, fsdp=8)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), wanted)
    with Checkpoints(tmp_path, every_steps=1) as checkpoints:
        checkpoints.save(1, _state(saved_stacked, fsdp=2), {})
        checkpoints.wait()
        restored = checkpoints.restore(abstract, 1)
    micro.assert_equal(restored, wanted)
    assert all(a.sharding == b.sharding for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(wanted), strict=True))


def test_all_of_a_real_state_is_found_in_the_other_layout():
    """Parameters, teacher, optimizer moments, statistics and counters: no leaf is left over, and shapes fit."""
    single, stacked = (
        named_leaves(pretraining.abstract_state(micro.config({"model": {"scan_blocks": scan}}), micro.LENGTH)) for scan in (False, True)
    )
    assert single.keys() != stacked.keys()
    for wanted, saved in ((stacked, single), (single, stacked)):
        stored = stacking.stored(wanted, saved)
        assert {name: leaf.shape for name, leaf in stored.items()} == {name: leaf.shape for name, leaf in saved.items()}


def test_another_depth_is_refused(tmp_path: Path):
    with Checkpoints(tmp_path, every_steps=1) as checkpoints:
        checkpoints.save(1, {"blocks_0": jnp.ones(3), "blocks_1": jnp.ones(3)}, {})
        checkpoints.wait()
        for depth, message in ((1, "blocks_1: saved, but not wanted"), (3, "blocks_2: wanted, but not saved")):
            with pytest.raises(CheckpointError, match=message):
                checkpoints.restore({"blocks": jax.ShapeDtypeStruct((depth, 3), jnp.float32)}, 1)
