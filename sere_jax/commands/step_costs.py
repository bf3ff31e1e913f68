"""What a compiled train step costs: operations, and bytes of memory on each device by kind."""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sere_jax import sharding
from sere_jax.build import pretraining
from sere_jax.commands.chips import GIB, peak
from sere_jax.reporting.progress import Progress
from sere_jax.train.arithmetic import matmul_operations
from sere_jax.train.meter import Work
from sere_jax.train.state import State
from sere_jax.types import PyTree


def operations(config: ConfigDict, length: pretraining.Steps) -> float:
    """The operations that a step of the global batch needs: matrix products and convolutions, without what `model.remat` does again."""
    config = ConfigDict(config.to_dict())
    config.model.remat = "none"
    config.model.scan_blocks = config.model.name == "vit"  # the same operations, traced in a fraction of the time
    step = pretraining.train_step(config, length)
    return float(matmul_operations(jax.make_jaxpr(step)(pretraining.abstract_state(config, length), pretraining.abstract_views(config))))


def compile_step(config: ConfigDict, length: pretraining.Steps, mesh: Mesh, abstract_state: State) -> jax.stages.Compiled:
    """Compile the train step (state, views) -> (state, metrics): batch over all devices, metrics everywhere; it donates the state."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state)
    step = jax.jit(
        pretraining.train_step(config, length, mesh),
        in_shardings=(shardings, sharding.batch_sharding(mesh)),
        out_shardings=(shardings, sharding.replicated(mesh)),
        donate_argnums=0,
    )
    return step.lower(abstract_state, abstract_batch(config, mesh)).compile()


def abstract_batch(config: ConfigDict, mesh: Mesh) -> Any:
    """Shapes, types and shardings of a global batch."""
    rows = sharding.batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), pretraining.abstract_views(config))


class Compilation:
    """Compiles the train step of a run, and counts its operations meanwhile."""

    def __init__(self, config: ConfigDict, length: pretraining.Steps, mesh: Mesh, abstract_state: State, progress: Progress) -> None:
        self._config, self._length, self._mesh, self._abstract_state, self._progress = config, length, mesh, abstract_state, progress
        self._operations, self._peak = 0.0, peak(mesh.size)  # before data workers take the cores

    def step(self) -> jax.stages.Compiled:
        """The compiled step; a line of its memory is printed."""
        with self._progress.busy("compiling"), ThreadPoolExecutor(1) as thread:
            counted = thread.submit(operations, self._config, self._length)
            step = compile_step(self._config, self._length, self._mesh, self._abstract_state)
            self._operations = counted.result()
        batch = abstract_batch(self._config, self._mesh)
        self._progress.note(f"memory       {memory_line(memory(self._abstract_state, batch, step))}")
        return step

    def work(self) -> Work:
        """What a step computes, beside the devices' peak."""
        images = self._config.data.batch_size
        self._progress.note(f"arithmetic   {self._operations / images / 1e9:,.2f} GFLOP an image; MFU is of {self._peak.origin}")
        return Work(images, self._operations, self._peak.operations, self._mesh.size)


def memory(state: State, batch: PyTree, step: Any) -> dict[str, int]:
    """Bytes on a device by kind: what the state holds, the batch, and the compiler's temporaries (absent without an estimate).

    `state` and `batch` have shapes, types and shardings; `step` is the compiled step.
    """
    method = state.method
    kinds = {
        "parameters": state.params,
        "teacher": getattr(method, "teacher", {}),
        "optimizer": state.opt_state,
        "statistics": (state.batch_stats, getattr(method, "teacher_batch_stats", {}), getattr(method, "objective", {})),
        "batch": batch,
    }
    sizes = {kind: sum(_bytes_a_device(leaf) for leaf in jax.tree.leaves(tree)) for kind, tree in kinds.items()}
    estimate = step.memory_analysis()
    return sizes if estimate is None else sizes | {"temporaries": int(estimate.temp_size_in_bytes)}


def _bytes_a_device(leaf: Any) -> int:
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def memory_line(sizes: Mapping[str, int]) -> str:
    """The sizes as one line, GiB a device.

    >>> memory_line({"parameters": 2**30, "batch": 0, "temporaries": 2**29})
    'about 1.50 GiB a device: parameters 1.00, batch 0.00, temporaries 0.50'
    """
    kinds = ", ".join(f"{kind} {size / GIB:.2f}" for kind, size in sizes.items())
    unknown = "" if "temporaries" in sizes else "; the compiler gives no estimate of its temporaries"
    return f"about {sum(sizes.values()) / GIB:.2f} GiB a device: {kinds}{unknown}"
