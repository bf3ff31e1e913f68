"""What a step costs, on a micro config: traced and laid out; no step is compiled."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from sere_jax import sharding
from sere_jax.build import pretraining
from sere_jax.commands import chips, pretrain, step_costs
from sere_jax.train.arithmetic import matmul_operations
from tests import micro


class _Compiled:
    """A compiled step as far as its memory is asked for."""

    def memory_analysis(self) -> Any:
        return None


@pytest.mark.slow  # two steps are traced
def test_what_remat_does_again_is_not_needed():
    """The count of a config with remat is that of the step without it, traced block by block."""
    config = micro.config({"model": {"remat": "dots"}}, recipe="dino")
    plain = pretraining.train_step(micro.config(recipe="dino"), micro.LENGTH)
    traced = jax.make_jaxpr(plain)(pretraining.abstract_state(config, micro.LENGTH), pretraining.abstract_views(config))
    assert step_costs.operations(config, micro.LENGTH) == matmul_operations(traced)


@pytest.mark.parametrize("fsdp", [1, 8])
def test_memory_by_kind_is_that_of_one_device(fsdp: int):
    """Leaves that are large and divide by 8 are cut; all others are whole on every device."""
    config, mesh = micro.config(), sharding.make_mesh(fsdp)
    config.head.update(prototypes=4096, bottleneck=32)
    state = pretrain.state_parts(config, micro.LENGTH, mesh).abstract_state
    sizes = step_costs.memory(state, step_costs.abstract_batch(config, mesh), _Compiled())

    def expected(tree: Any) -> int:
        whole = [(math.prod(leaf.shape) * leaf.dtype.itemsize, leaf.shape) for leaf in jax.tree.leaves(tree)]
        cut = [size // fsdp if math.prod(shape) >= 2**14 and any(n % fsdp == 0 for n in shape) else size for size, shape in whole]
        return sum(cut)

    assert sizes["parameters"] == expected(state.params) and sizes["teacher"] == expected(state.method.teacher)
    assert sizes["optimizer"] == pytest.approx(2 * sizes["parameters"], rel=0.01)
    assert sizes["batch"] == sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(micro.views(config))) // 8
    assert "gives no estimate" in step_costs.memory_line(sizes)


def test_a_measured_peak_is_a_rate_that_this_machine_could_have():
    assert 1e8 < chips.measured_peak(256, jnp.float32, rounds=1) < 1e13
    assert chips.peak(8).operations == pytest.approx(chips.peak(1).operations, rel=0.9), "fake devices share the CPU's cores"
