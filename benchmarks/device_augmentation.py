"""The device's share of the augmentation: its time beside that of the train step it feeds, compiled and run side by side.

    python -m benchmarks.device_augmentation [--config=configs/dino_sere_vits16.py] [--batch_size=4] [--rounds=3]
    python -m benchmarks.device_augmentation --aot=v5e:2x2 --batch_size=64    (no TPU needed, but `pip install libtpu`)

On a CPU the step's matrix products run at the CPU's speed; on an accelerator run it there. Beside the time it tells the arithmetic
and the bytes that XLA counts for both, which hold for any device. `--aot` compiles for a TPU of that topology without running
anything, `--batch_size` images a chip: the arithmetic and the bytes of its own compiler, and the time that they take at the
chip's peak, whichever of the two is longer. With `--without_step` as well the step is not compiled.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import rich.console
import rich.table

from sere_jax import sharding
from sere_jax.build import pretraining
from sere_jax.commands import pretrain, step_costs
from sere_jax.types import Views


def load(path: str, batch_size: int) -> Any:
    spec = importlib.util.spec_from_file_location("benchmarked_config", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.data.batch_size = batch_size
    if jax.default_backend() == "cpu":
        config.model.dtype = "float32"  # XLA's bfloat16 on a CPU is slower
        config.model.scan_blocks = True  # compiles in a tenth of the time and runs as fast
    return config


def random_views(config: Any) -> Views:
    rng = np.random.default_rng(0)
    abstract = pretraining.abstract_views(config)

    def fill(shape: Any) -> np.ndarray:
        if shape.dtype == np.uint8:
            return rng.integers(0, 256, shape.shape, dtype=np.uint8)
        return np.zeros(shape.shape, shape.dtype)

    views = jax.tree.map(fill, abstract)
    boxes = np.broadcast_to(np.array([10, 10, 200, 200], np.float32), views.boxes.shape)
    return views._replace(boxes=boxes)


def measure(work: dict[str, Callable[[], Any]], repeats: dict[str, int], rounds: int) -> dict[str, list[float]]:
    """Seconds of one call, a value a round: CPU time on a CPU. Short work is repeated, and its first call in a round not counted: it would
    pay for the memory that the step before it gave back."""
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, one in work.items():
            jax.block_until_ready(one())
            began = clock()
            for _ in range(repeats[name]):
                jax.block_until_ready(one())
            times[name].append((clock() - began) / repeats[name])
    return times


# Peak of one chip: bfloat16 operations a second, bytes of memory a second (Google's figures).
_PEAKS = {"v5e": (197e12, 819e9), "v4": (275e12, 1228e9), "v6e": (918e12, 1640e9)}


def estimate(path: str, topology: str, images: int, without_step: bool) -> None:
    """The table of `--aot`. A loop's body would be counted once, so blocks are unrolled; twelve of them compile for minutes, so the step is
    compiled with one and with two, and each further block costs what the second one does."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    from jax.experimental import topologies
    from jax.sharding import AxisType, Mesh

    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    mesh = Mesh(np.array(devices).reshape(-1, 1), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    config = load(path, images * len(devices))
    config.model.update({"dtype": "bfloat16", "scan_blocks": False, "remat": "none"})
    rows = sharding.batch_sharding(mesh)
    views = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), pretraining.abstract_views(config))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), config.data.batch_size))
    keys = jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=rows)
    augmentation = _counted(
        jax.jit(pretraining.augment(config), in_shardings=(rows, rows), out_shardings=rows).lower(views, keys).compile()
    )
    peaks = _PEAKS[topology.partition(":")[0]]
    milliseconds = 1000 * max(value / peak for value, peak in zip(augmentation, peaks, strict=True))
    floats = 4 * sum(array.size for array in (views.global_views, views.local_views)) / len(devices)
    print(
        f"augmentation, {images} images a chip: {augmentation[0] / 1e9:.1f} GFLOP, {augmentation[1] / 1e9:.2f} GB, "
        f"{augmentation[1] / floats:.1f} times the views in float32, {milliseconds:.2f} ms at peak",
        flush=True,
    )
    if without_step:
        return
    depth, width, heads = pretraining.backbone(config).depth, pretraining.backbone(config).width, pretraining.backbone(config).heads
    config.model.update({"variant": "custom", "width": width, "heads": heads})
    steps = []
    for blocks in (1, 2):
        config.model.depth = blocks
        length = pretraining.Steps(1000, 100_000)
        state = pretrain.state_parts(config, length, mesh).abstract_state
        steps.append(_counted(step_costs.compile_step(config, length, mesh, state)))
    step = tuple(one + (depth - 1) * (two - one) for one, two in zip(*steps, strict=True))
    table = rich.table.Table("a chip", "GFLOP", "GB moved", "ms at peak", title=f"{path}, {images} images a chip, {topology}, bfloat16")
    times = [max(value / peak for value, peak in zip(cost, peaks, strict=True)) for cost in (augmentation, step)]
    for name, cost, seconds in zip(("augmentation", f"step of {depth} blocks"), (augmentation, step), times, strict=True):
        table.add_row(name, f"{cost[0] / 1e9:.1f}", f"{cost[1] / 1e9:.2f}", f"{seconds * 1000:.2f}")
    rich.console.Console().print(table)
    shares = {"arithmetic": augmentation[0] / step[0], "bytes": augmentation[1] / step[1], "time": times[0] / times[1]}
    print("augmentation / step: " + ", ".join(f"{share:.2%} of the {name}" for name, share in shares.items()))


def _counted(compiled: Any) -> tuple[float, float]:
    costs = compiled.cost_analysis()
    return costs["flops"], costs["bytes accessed"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", default="configs/dino_sere_vits16.py")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--aot", default="", metavar="TOPOLOGY", help="compile for this TPU instead, such as v5e:2x2")
    parser.add_argument("--without_step", action="store_true", help="with --aot: count the augmentation alone")
    flags = parser.parse_args()
    if flags.aot:
        estimate(flags.config, flags.aot, flags.batch_size, flags.without_step)
        return
    config = load(flags.config, flags.batch_size)
    length = pretraining.Steps(1000, 100_000)
    views = jax.device_put(random_views(config))
    keys = jax.random.split(jax.random.key(0), flags.batch_size)
    state = pretraining.init_state(config, length)
    augment = jax.jit(pretraining.augment(config)).lower(views, keys).compile()
    step = jax.jit(pretraining.train_step(config, length)).lower(state, views).compile()
    times = measure(
        {"augmentation": lambda: augment(views, keys), "step": lambda: step(state, views)}, {"augmentation": 10, "step": 1}, flags.rounds
    )
    table = rich.table.Table(
        "", "ms an image", "GFLOP", "GB moved", title=f"{flags.config}, batch {flags.batch_size}, {jax.default_backend()}"
    )
    for name, compiled in (("augmentation", augment), ("step", step)):
        counted = compiled.cost_analysis() or {}
        cost = statistics.median(times[name]) / flags.batch_size * 1000
        table.add_row(name, f"{cost:.2f}", f"{counted.get('flops', 0) / 1e9:.2f}", f"{counted.get('bytes accessed', 0) / 1e9:.2f}")
    shares = [a / b for a, b in zip(times["augmentation"], times["step"], strict=True)]
    rich.console.Console().print(table)
    print(f"augmentation / step: {statistics.median(shares):.2%} ({min(shares):.2%} to {max(shares):.2%})")


if __name__ == "__main__":
    main()
