"""The train step against the PyTorch statement of the same step (tests/oracles), in alternating processes on this machine's CPU.

    python -m benchmarks.train_step                                       the whole comparison and the table of sizes, some hours
    python -m benchmarks.train_step --rounds=2 --steps=1 --settings=2x224 --threads=1 --no-sizes
    python -m benchmarks.train_step --small --rounds=1 --steps=1 --settings=2x224+4x96 --threads=1 --no-sizes      to see that it works

Both start from the same parameters and take the same batch: iBOT + SERE, ViT-S/16, K = 8,192, 4 images, in float32, and with
PyTorch's autocast in bfloat16 where the CPU has such products. The losses of the first step must agree to 1e-4 (bfloat16: 2e-2), or
nothing is measured. A round is a process of ours and one of PyTorch's; the ratios are of one round each, and their median is told.
The compiled step is kept between rounds, so that memory is that of training, not of the compiler.

MFU is of a measured matrix product. Ours counts the operations that the step needs, PyTorch's those that it makes. Where PyTorch's is
below 65 %, the ratio says nothing about our step, and is void. `--sizes` varies batch, crops, depth, K and resolution of our step.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

# Number of local crops.
SETTINGS = {"2x224+4x96": 4, "2x224": 0, "2x224+10x96": 10}
SIZES = {
    "batch": [{"data.batch_size": size} for size in (1, 2, 4, 8)],
    "local crops": [{"views.local_count": count} for count in (0, 4, 10)],
    "depth": [{"model.depth": depth} for depth in (4, 8, 12)],
    "prototypes": [{"head.prototypes": count} for count in (1024, 8192, 65536)],
    "resolution": [{"views.global_size": side} for side in (112, 160, 224)],
}
PARITY, LEAST_OF_PEAK = {"float32": 1e-4, "bfloat16": 2e-2}, 0.65


def config_of(changes: dict[str, Any], small: bool) -> Any:
    from configs import ibot_sere_vits16

    config = ibot_sere_vits16.get_config("source=bundled")
    config.data.batch_size = 4
    config.model.update(
        {"variant": "custom", "width": 384, "depth": 12, "heads": 6, "drop_path": 0.0, "dtype": "float32", "scan_blocks": True}
    )
    if small:
        config.model.update({"width": 48, "depth": 2, "heads": 3})
        config.views.update({"global_size": 64, "local_size": 32})
        config.head.update({"prototypes": 64, "hidden": 32, "bottleneck": 16})
    config.update_from_flattened_dict(changes)
    if not config.views.local_count:
        config.views.local_size = 96
    return config


def peak(multiply: Callable[[], Any], size: int, rounds: int = 5) -> float:
    """Operations a second of a product of two square matrices, the best of some rounds."""
    multiply()
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        multiply()
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds)


def timed(step: Callable[[], Any], steps: int) -> list[float]:
    """Seconds of each step, after one that is not counted."""
    step()
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    return seconds


def ours(config: Any, steps: int) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp

    from sere_jax.build import pretraining
    from sere_jax.commands import step_costs
    from tests import micro
    from tests.parity import setting

    views, state = micro.views(config, batch=config.data.batch_size), micro.state(config, setting.LENGTH)
    began = time.perf_counter()
    step = jax.jit(pretraining.train_step(config, setting.LENGTH), donate_argnums=0).lower(state, views).compile()
    compile_seconds = time.perf_counter() - began
    state, metrics = step(state, views)
    losses = {name: float(value) for name, value in metrics.items()}

    def one() -> None:
        nonlocal state
        state, metrics = step(state, views)
        jax.block_until_ready(metrics)

    seconds = timed(one, steps)
    matrix, product = jnp.ones((1024, 1024)), jax.jit(lambda a: a @ a)
    return {
        "seconds": seconds,
        "losses": losses,
        "compile": compile_seconds,
        "operations": step_costs.operations(config, setting.LENGTH),
        "peak": peak(lambda: jax.block_until_ready(product(matrix)), 1024),
    }


def theirs(config: Any, steps: int) -> dict[str, Any]:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from tests import micro
    from tests.parity import setting

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    views, state = micro.views(config, batch=config.data.batch_size), micro.state(config, setting.LENGTH)
    trainer = setting.trainer(config, state)
    del state
    for network in (trainer.student, trainer.teacher):
        network.float()
    trainer.centers = {name: center.float() for name, center in trainer.centers.items()}
    batch = setting.batch_of(config, views)
    batch = batch._replace(large=batch.large.float(), small=batch.small.float())
    with torch.autocast("cpu", torch.bfloat16, enabled=config.model.dtype == "bfloat16"):
        losses = trainer.step(batch)
        seconds = timed(lambda: trainer.step(batch), steps)
        memory = peak_memory()
        with FlopCounterMode(display=False) as counter:
            trainer.step(batch)
    matrix = torch.ones(1024, 1024)
    rate = peak(lambda: matrix @ matrix, 1024)
    return {"seconds": seconds, "losses": losses, "operations": counter.get_total_flops(), "peak": rate, "memory": memory}


def peak_memory() -> float:
    """GiB of this process, the most since it began."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def child(side: str, changes: dict[str, Any], flags: argparse.Namespace) -> None:
    """One process of a round; its last line is JSON."""
    config = config_of(changes, flags.small)
    result = {"ours": ours, "theirs": theirs}[side](config, flags.steps)
    print(json.dumps({"memory": peak_memory()} | result))


def run(side: str, changes: dict[str, Any], threads: int, flags: argparse.Namespace, cache: str) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "benchmarks.train_step",
        f"--child={side}",
        f"--changes={json.dumps(changes)}",
        f"--steps={flags.steps}",
    ]
    cores = ",".join(str(core) for core in sorted(os.sched_getaffinity(0))[:threads])
    xla = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true" if flags.small else ""
    environ = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": cache, "XLA_FLAGS": xla, "OMP_NUM_THREADS": str(threads)}
    command = ["taskset", "-c", cores, *command, *(["--small"] if flags.small else [])]
    done = subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(name: str, dtype: str, threads: int, flags: argparse.Namespace, cache: str) -> str:
    """All rounds of one setting: prints a line for each, and returns the line of medians."""
    changes, title = {"views.local_count": SETTINGS[name], "model.dtype": dtype}, f"{name}, {dtype}, {threads} threads"
    first = run("ours", changes, threads, flags, cache)  # compiles; its memory is the compiler's
    rounds = []
    for number in range(flags.rounds):
        mine, other = run("ours", changes, threads, flags, cache), run("theirs", changes, threads, flags, cache)
        worst = max(abs(mine["losses"][key] - value) / abs(value) for key, value in other["losses"].items())
        if worst > PARITY[dtype]:
            raise SystemExit(
                f"{title}: the losses of the first step differ by {worst:.1e}, more than {PARITY[dtype]:g}: nothing is compared"
            )
        rounds.append((mine, other))
        a, b = statistics.median(mine["seconds"]), statistics.median(other["seconds"])
        print(f"  {title}, round {number + 1}: ours {a:.2f} s, PyTorch {b:.2f} s, {b / a:.2f}x", flush=True)
    ratios = [statistics.median(b["seconds"]) / statistics.median(a["seconds"]) for a, b in rounds]
    fastest = max(one["peak"] for pair in rounds for one in pair)
    of_peak = [
        statistics.median(one["operations"] / statistics.median(one["seconds"]) / fastest for one in side)
        for side in zip(*rounds, strict=True)
    ]
    memory = statistics.median(a["memory"] / b["memory"] for a, b in rounds)
    void = "" if of_peak[1] >= LEAST_OF_PEAK else f"; VOID: PyTorch's step is below {LEAST_OF_PEAK:.0%} of the peak"
    return (
        f"{title}: {statistics.median(ratios):.2f}x PyTorch ({min(ratios):.2f} to {max(ratios):.2f}), "
        f"memory {memory:.2f}x, MFU {of_peak[0]:.0%} against {of_peak[1]:.0%}, compiled in {first['compile']:.0f} s{void}"
    )


def sizes(flags: argparse.Namespace, cache: str) -> list[tuple[str, str, float, float, float]]:
    """(what varies, its value, seconds a step, GiB, seconds of compilation) of our step, all threads."""
    threads, rows = len(os.sched_getaffinity(0)), []
    for what, variants in SIZES.items():
        for changes in variants:
            compiled, result = (run("ours", changes, threads, flags, cache) for _ in range(2))
            row = (what, str(next(iter(changes.values()))), statistics.median(result["seconds"]), result["memory"], compiled["compile"])
            rows.append(row)
            print(f"  {what} {row[1]}: {row[2]:.2f} s, {row[3]:.2f} GiB, compiled in {row[4]:.0f} s", flush=True)
    return rows


def draw(rows: list[tuple[str, str, float, float, float]], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(SIZES), figsize=(3 * len(SIZES), 3), constrained_layout=True)
    for axis, what in zip(axes, SIZES, strict=True):
        values = [(value, seconds) for name, value, seconds, *_ in rows if name == what]
        axis.bar([value for value, _ in values], [seconds for _, seconds in values])
        axis.set(xlabel=what, ylabel="seconds a step" if what == "batch" else "")
    figure.savefig(path, dpi=150)
    print(f"written: {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="steps measured in a process")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--small", action="store_true", help="a network of micro size: shows that the benchmark works, measures nothing")
    parser.add_argument("--sizes", action=argparse.BooleanOptionalAction, default=True, help="cost against size")
    parser.add_argument("--plot", default="", metavar="FILE.png")
    parser.add_argument("--child", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    parser.add_argument("--changes", type=json.loads, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.child:
        child(flags.child, flags.changes, flags)
        return
    with open("/proc/cpuinfo") as info:
        reduced = "avx512_bf16" in (text := info.read()) or "amx_bf16" in text
    with tempfile.TemporaryDirectory() as cache:
        rows = sizes(flags, cache) if flags.sizes else []
        if rows and flags.plot:
            draw(rows, flags.plot)
        threads = [count for count in flags.threads if count <= len(os.sched_getaffinity(0))]
        dtypes = ("float32", "bfloat16") if reduced else ("float32",)
        lines = [compare(name, dtype, count, flags, cache) for dtype in dtypes for name in flags.settings for count in threads]
    print("\n".join(lines))
    if not reduced:
        print("bfloat16: void, this CPU has no bfloat16 products (AVX-512 BF16 or AMX)")


if __name__ == "__main__":
    main()
