"""What logging costs a step: the meter, metrics.jsonl, TensorBoard and the console, without the step itself.

    python -m benchmarks.logging_overhead [--steps=2000] [--log_every=10] [--metrics=30] [--step_ms=100]

The step is a program that does nothing, so all the time between two of them is the driver's. The main thread's CPU time is told, which
other programs do not change, in microseconds a step and as a share of a step of --step_ms. On an accelerator it passes while the device
works; only the part that is longer than a step would be lost.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time

import jax
import jax.numpy as jnp
import rich.console

from sere_jax.reporting.progress import Progress
from sere_jax.train.meter import Limits, Meter, Work


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--log_every", type=int, default=10)
    parser.add_argument("--metrics", type=int, default=30)
    parser.add_argument("--step_ms", type=float, default=100.0)
    flags = parser.parse_args()
    step = jax.jit(lambda x: {f"metric{number}": x + number for number in range(flags.metrics)} | {"bad_step": 0.0 * x})
    jax.block_until_ready(step(jnp.float32(0)))
    seconds = {}
    with (
        tempfile.TemporaryDirectory() as directory,
        open(os.devnull, "w") as nowhere,
        Progress(directory, total_steps=2 * flags.steps, console=rich.console.Console(file=nowhere, width=160)) as progress,
    ):
        progress.start(0)
        meter = Meter(0, Work(256, 1e12, 1e14, 8), progress, Limits(), 0)
        for number in range(1, flags.steps + 1):  # the first log opens files and compiles
            meter.add(number, step(jnp.float32(number)), None, due=number % flags.log_every == 0)
            if number == flags.log_every:
                meter.wait()
                began = time.thread_time()
        meter.wait()
        seconds["logged"] = (time.thread_time() - began) / (flags.steps - flags.log_every)
        began = time.thread_time()
        for number in range(flags.steps):
            jax.block_until_ready(step(jnp.float32(number)))
        seconds["alone"] = (time.thread_time() - began) / flags.steps
    cost = seconds["logged"] - seconds["alone"]
    print(f"logging: {cost * 1e6:.0f} microseconds a step, {cost * 1000 / flags.step_ms:.2%} of a step of {flags.step_ms:g} ms")


if __name__ == "__main__":
    main()
