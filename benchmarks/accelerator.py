"""What this project does on the accelerator of this machine, in one table.

    make accelerator
    python -m benchmarks.accelerator [--minutes=30] [--skip=tests,training]
    python -m benchmarks.accelerator --small --tests=tests/losses        sizes cut, to see on a CPU that it works

tests       the fast suite's numeric tests on the device, matrix products in float32 (`JAX_DEFAULT_MATMUL_PRECISION=highest`)
precision   a ViT's tokens on the device in float32, in the device's default precision and in bfloat16, against float32 on the CPU
step        the train step of DINO + SERE, ViT-S/16, in float32 and bfloat16: images/s, MFU, memory; with CUDA also PyTorch's step
            (tests/oracles) under autocast, with the losses of the first step compared
training    a run of --source (quickstart's photographs; `--source=tfds:cifar10:train --gallery=... --query=...` for CIFAR-10), at most
            --minutes long: its k-NN against raw pixels' by eval.py, its wait for data, and a trace

It needs the requirements of the test suite, and takes whatever JAX (0.11 or newer) the machine has. Exit code 1: a check failed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
NUMERIC = ("tests/ops", "tests/losses", "tests/objectives", "tests/models", "tests/train/test_optim.py", "tests/parity")
# Largest relative error of the tokens, by what multiplied: float32, whatever the device prefers (TF32, bfloat16 passes), bfloat16.
TOLERANCES = {"float32": 1e-4, "default": 2e-2, "bfloat16": 5e-2}
MARGIN = 1.1  # the run's k-NN top-1 over that of raw pixels


class Row(NamedTuple):
    """A line of the table."""

    check: str
    result: str
    good: bool = True


def tests(flags: argparse.Namespace) -> list[Row]:
    environ = os.environ | {"JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", ""), "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *(flags.tests or NUMERIC)]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    last = (done.stdout.strip().splitlines() or [done.stderr.strip()[-200:]])[-1]
    return [Row("numeric tests", last, done.returncode == 0), *(Row("", line.removeprefix("FAILED "), False) for line in failed)]


def precision(flags: argparse.Namespace) -> list[Row]:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from sere_jax.models.vit import ViT

    sizes = {"width": 96, "depth": 2, "heads": 3} if flags.small else {}
    images = jax.random.normal(jax.random.key(1), (4, 224, 224, 3))
    with jax.default_device(jax.local_devices(backend="cpu")[0]), jax.default_matmul_precision("highest"):
        params = ViT(**sizes).init(jax.random.key(0), images)
        expected = np.asarray(ViT(**sizes).apply(params, images).patches)
    rows = []
    for name, limit in TOLERANCES.items():
        vit = ViT(**sizes, dtype=jnp.bfloat16 if name == "bfloat16" else jnp.float32)
        with jax.default_matmul_precision("highest" if name == "float32" else "default"):
            tokens = np.asarray(jax.jit(vit.apply)(jax.device_put(params), jax.device_put(images)).patches, np.float32)
        error = float(np.linalg.norm(tokens - expected) / np.linalg.norm(expected))
        rows.append(Row(f"tokens in {name}", f"relative error {error:.1e}, at most {limit:g}", error <= limit))
    return rows


def step_config(dtype: str, flags: argparse.Namespace) -> Any:
    from configs import dino_sere_vits16

    config = dino_sere_vits16.get_config("source=bundled")
    config.model.update({"variant": "custom", "width": 384, "depth": 12, "heads": 6, "drop_path": 0.0, "dtype": dtype})
    config.model.update({"scan_blocks": True, "remat": "dots"})
    config.data.batch_size, config.head.prototypes = flags.batch_size, 8192
    if flags.small:
        config.data.batch_size = 4
        config.model.update({"width": 48, "depth": 2, "heads": 3})
        config.views.update({"global_size": 64, "local_size": 32})
        config.head.update({"prototypes": 64, "hidden": 32, "bottleneck": 16})
    return config


def seconds_of(step: Callable[[], Any], flags: argparse.Namespace) -> float:
    times = []
    for _ in range(3 if flags.small else 20):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def step(flags: argparse.Namespace) -> list[Row]:
    import jax

    from sere_jax.build import pretraining
    from sere_jax.commands import chips, step_costs
    from sere_jax.train.meter import peak_memory
    from tests import micro
    from tests.parity import setting

    rows, peak = [], chips.peak(1)
    for dtype in ("float32", "bfloat16"):
        config = step_config(dtype, flags)
        images, views = config.data.batch_size, jax.device_put(micro.views(config, batch=config.data.batch_size))
        state = micro.state(config, setting.LENGTH)
        theirs = torch_step(config, state, views, flags) if dtype == "bfloat16" else None
        compiled = jax.jit(pretraining.train_step(config, setting.LENGTH), donate_argnums=0).lower(state, views).compile()
        seconds, losses = timed_step(compiled, state, views, flags)
        used = step_costs.operations(config, setting.LENGTH) / seconds / peak.operations
        memory = ", ".join(f"{name.removeprefix('memory/')} {value:.2f}" for name, value in peak_memory().items())
        rows.append(Row(f"step in {dtype}", f"{images / seconds:,.1f} images/s, MFU {used:.1%} of {peak.origin}; {memory}"))
        if theirs is not None:
            rate, other = theirs
            worst = max(abs(losses[key] - value) / abs(value) for key, value in other.items())
            result = f"{rate:,.1f} images/s; ours {images / seconds / rate:.2f}x; losses differ by {worst:.1e}"
            rows.append(Row("PyTorch, autocast", result, worst < 0.02))
    return rows


def timed_step(compiled: Any, state: Any, views: Any, flags: argparse.Namespace) -> tuple[float, dict[str, float]]:
    """Seconds of a step, and the losses of the first one."""
    import jax

    state, metrics = compiled(state, views)
    losses = {name: float(value) for name, value in metrics.items()}

    def one() -> None:
        nonlocal state
        state, metrics = compiled(state, views)
        jax.block_until_ready(metrics)

    return seconds_of(one, flags), losses


def torch_step(config: Any, state: Any, views: Any, flags: argparse.Namespace) -> tuple[float, dict[str, float]] | None:
    """Images a second of PyTorch's step on the same GPU, and the losses of its first step; None without CUDA."""
    import torch

    from tests.parity import setting

    if not torch.cuda.is_available():
        return None
    trainer = setting.trainer(config, state)
    for network in (trainer.student, trainer.teacher):
        network.float().cuda()
    trainer.centers = {name: center.float().cuda() for name, center in trainer.centers.items()}
    batch = setting.batch_of(config, views)
    batch = batch._replace(large=batch.large.float().cuda(), small=batch.small.float().cuda())

    def one() -> dict[str, float]:
        with torch.autocast("cuda", torch.bfloat16):
            losses = trainer.step(batch)
        torch.cuda.synchronize()
        return losses

    losses = one()
    return config.data.batch_size / seconds_of(one, flags), losses


def training(flags: argparse.Namespace) -> list[Row]:
    with tempfile.TemporaryDirectory() as scratch:
        keys = [f"--config.schedule.total_steps={30 if flags.small else flags.total_steps}", "--config.run.profile_steps=20,3"]
        if flags.source:
            keys += [f"--config.data.source={flags.source}", f"--config.eval.gallery={flags.gallery}", f"--config.eval.query={flags.query}"]
        run = [
            sys.executable,
            "train.py",
            f"--config={flags.config}",
            f"--workdir={scratch}",
            *keys,
            f"--config.data.workers={flags.workers}",
        ]
        began = time.perf_counter()
        done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=60 * flags.minutes)
        if done.returncode:
            return [Row("training", (done.stderr or done.stdout)[-300:], False)]
        minutes = (time.perf_counter() - began) / 60
        values = [json.loads(line) for line in (Path(scratch) / "metrics.jsonl").read_text().splitlines()]
        speed = [row for row in values if "speed/data_wait" in row]
        wait = statistics.median(row["speed/data_wait"] for row in speed)
        rate = statistics.median(row["speed/images_per_second"] for row in speed)
        traces = list(Path(scratch, "trace").rglob("*.xplane.pb"))
        rows = [Row("training", f"{minutes:.1f} minutes, {rate:,.0f} images/s, waiting for data {wait:.0%}", wait < 0.1 or flags.small)]
        rows.append(Row("trace", f"{len(traces)} file, {sum(path.stat().st_size for path in traces) / 1e6:.1f} MB", bool(traces)))
        return [*rows, against_pixels(scratch, flags)]


def against_pixels(workdir: str, flags: argparse.Namespace) -> Row:
    """k-NN top-1 of the run and of raw pixels, by eval.py."""
    sides = [f"--config.gallery={flags.gallery}", f"--config.query={flags.query}"] if flags.source else []
    argument = "" if flags.source else ":bundled"
    command = [sys.executable, "eval.py", f"--config=configs/eval/knn.py{argument}", f"--checkpoint={workdir}", f"--workdir={workdir}"]
    done = subprocess.run([*command, *sides, "--config.baselines=True"], cwd=ROOT, capture_output=True, text=True)
    report = Path(workdir, "eval", "knn.json")
    if done.returncode or not report.is_file():
        return Row("k-NN", (done.stderr or done.stdout)[-300:], False)
    best = {row["name"]: row["best_top1"] for row in json.loads(report.read_text())["results"]}
    mine, pixels = best[Path(workdir).name], best["raw pixels"]
    return Row("k-NN top-1", f"{mine:.3f}, raw pixels {pixels:.3f}", mine >= MARGIN * pixels or flags.small)


CHECKS = {"precision": precision, "step": step, "tests": tests, "training": training}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--small", action="store_true", help="sizes cut: shows that it works, measures nothing")
    parser.add_argument("--skip", default="", help=f"checks to leave out, of {','.join(CHECKS)}")
    parser.add_argument("--tests", nargs="*", help="test files instead of the numeric ones")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--config", default="configs/quickstart.py", help="of the training")
    parser.add_argument("--source", default="", help="images of the training; with --gallery and --query")
    parser.add_argument("--gallery", default="")
    parser.add_argument("--query", default="")
    parser.add_argument("--total_steps", type=int, default=1400)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--workers", type=int, default=0)
    flags = parser.parse_args()
    import jax
    import rich.console
    import rich.table

    device = jax.local_devices()[0]
    rows = [Row("device", f"{jax.local_device_count()} x {device.device_kind}, JAX {jax.__version__}")]
    for name, check in CHECKS.items():
        if name not in flags.skip.split(","):
            print(f"{name} ...", flush=True)
            rows += check(flags)
    table = rich.table.Table("check", "result", "")
    for row in rows:
        table.add_row(row.check, row.result, "" if row.good else "FAILED")
    rich.console.Console(width=160).print(table)
    return 0 if all(row.good for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
