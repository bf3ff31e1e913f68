"""The device's share of the augmentation: its time beside that of the train step it feeds, compiled and run side by side.

    python benchmarks/device_augmentation.py [--config=configs/dino_sere_vits16.py] [--batch_size=4] [--rounds=3]

On a CPU the step's matrix products run at the CPU's speed; on an accelerator run it there. Beside the time it tells the arithmetic
and the bytes that XLA counts for both, which hold for any device.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import rich.console
import rich.table

from sere_jax import build
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
    abstract = build.abstract_views(config)

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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", default="configs/dino_sere_vits16.py")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    config = load(flags.config, flags.batch_size)
    length = build.Steps(1000, 100_000)
    views = jax.device_put(random_views(config))
    keys = jax.random.split(jax.random.key(0), flags.batch_size)
    state = build.init_state(config, length)
    augment = jax.jit(build.augment(config)).lower(views, keys).compile()
    step = jax.jit(build.train_step(config, length)).lower(state, views).compile()
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
