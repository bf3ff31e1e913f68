"""A toy training for tests of the driver: python tests/toy_run.py DIRECTORY [key=value ...]; prints what happens.

The state is a NamedTuple as the real one; batches depend on the step only, so a resumed run must end in the same bits.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sere_jax.train.signals import Interrupted, Signals

SIGNALS = Signals(ends_process=True)
if __name__ == "__main__":
    SIGNALS.__enter__()  # before the slow imports, as train.py does
    print("starting", flush=True)

import jax
import jax.numpy as jnp
import numpy as np

from sere_jax import distributed, sharding
from sere_jax.reporting.progress import Progress
from sere_jax.train.checkpoint_manager import Checkpoints
from sere_jax.train.evaluations import Periodic
from sere_jax.train.fit import Stopped, fit
from sere_jax.train.meter import Work

ROWS = 16


class ToyState(NamedTuple):
    step: jax.Array
    params: Any
    moment: Any
    bad_steps: jax.Array


class ToyBatch(NamedTuple):
    x: Any
    replaced: Any


def init() -> ToyState:
    params = {"w": jax.random.normal(jax.random.key(0), (8, 32)), "b": jnp.zeros(32)}
    return ToyState(jnp.int32(0), params, jax.tree.map(jnp.zeros_like, params), jnp.int32(0))


def train_step(state: ToyState, batch: ToyBatch) -> tuple[ToyState, dict[str, jax.Array]]:
    def loss_of(params: Any) -> jax.Array:
        return jnp.mean((jnp.tanh(batch.x @ params["w"] + params["b"]) - batch.x[:, :1]) ** 2)

    loss, grads = jax.value_and_grad(loss_of)(state.params)
    good = jnp.isfinite(loss)
    moment = jax.tree.map(lambda m, g: jnp.where(good, 0.9 * m + g, m), state.moment, grads)
    params = jax.tree.map(lambda p, m: jnp.where(good, p - 0.1 * m, p), state.params, moment)
    bad = (~good).astype(jnp.int32)
    metrics = {"loss": loss, "bad_step": bad.astype(jnp.float32), "at": (state.step + 1).astype(jnp.float32)}
    return ToyState(state.step + 1, params, moment, state.bad_steps + bad), metrics


def batches(
    start: int, *, delay: float = 0.0, bad: tuple[int, ...] = (), broken: int = 0, processes: int = 1, process: int = 0
) -> Iterator[ToyBatch]:
    """Endless; the batches of the steps in `bad` hold a NaN, and `broken` rows of each batch are said to be replaced."""
    step = start
    while True:
        step += 1
        x = np.random.default_rng([7, step]).normal(size=(ROWS, 8)).astype(np.float32)
        if step in bad:
            x[0, 0] = np.nan
        time.sleep(delay)
        rows = slice(process * ROWS // processes, (process + 1) * ROWS // processes)
        yield ToyBatch(x[rows], (np.arange(ROWS) < broken)[rows])


def pieces(fsdp: int = 1) -> dict[str, Any]:
    """Arguments of `fit` that every toy run shares."""
    mesh = sharding.make_mesh(fsdp)
    shapes = jax.eval_shape(init)
    cut = sharding.state_shardings(shapes, mesh, min_size=8)
    step = jax.jit(
        train_step, donate_argnums=0, in_shardings=(cut, sharding.batch_sharding(mesh)), out_shardings=(cut, sharding.replicated(mesh))
    )
    return {
        "init": jax.jit(init, out_shardings=cut),
        "abstract_state": jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, cut),
        "compile_step": lambda: step,
        "put": lambda batch: sharding.to_global(batch, mesh),
        "work": lambda: Work(ROWS),
        "config": {"toy": True},
        "replaced": lambda batch: batch.replaced,
    }


def slow_pieces(seconds: float) -> dict[str, Any]:
    """The pieces, after so many seconds that stand for a compilation: the main thread does not come back to Python."""
    # Said while the work in C goes on: a signal that came before it would be handled in Python.
    threading.Timer(0.2 if seconds else 0.0, print, ("compiling",), {"flush": True}).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", int(seconds * 1e6) + 1)  # in C, other threads run, and no signal ends it
    return pieces()


def main(directory: str, **given: str) -> None:
    total, delay = int(given.get("total", 40)), float(given.get("delay", 0.0))
    if "port" in given:
        distributed.start_distributed(coordinator=f"127.0.0.1:{given['port']}", num_processes=2, process_id=int(given["rank"]))

    SIGNALS.join(jax.process_count(), interruptible=True)

    def evaluate(state: ToyState, step: int) -> Iterator[tuple[str, float]]:
        print("evaluating", step, flush=True)
        time.sleep(float(given.get("evaluation", 0.0)))
        yield "knn/accuracy", float(state.params["w"].sum())

    def rows(start: int) -> Iterator[ToyBatch]:
        return batches(start, delay=delay, processes=jax.process_count(), process=jax.process_index())

    try:
        with (
            Checkpoints(Path(directory) / "checkpoints", every_steps=int(given.get("every", 5))) as checkpoints,
            Progress(directory, total_steps=total, steps_per_epoch=10, references={"loss": 1.0}) as progress,
        ):
            state = fit(
                **slow_pieces(float(given.get("compile", 0.0))),
                batches=rows,
                total_steps=total,
                checkpoints=checkpoints,
                progress=progress,
                log_every_steps=2,
                evaluations=[Periodic("knn", int(given.get("evaluate", 0)), evaluate)],
                signals=SIGNALS,
            )
    except Stopped as stopped:
        print(stopped, flush=True)
        return
    if jax.process_index() == 0 or jax.process_count() == 1:
        print("finished", int(state.step), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    try:
        main(sys.argv[1], **dict(argument.split("=") for argument in sys.argv[2:]))
    except Interrupted:
        print(f"stopped by {SIGNALS.name} before the first step", flush=True)
