"""Blocks of a ViT forwards and backwards on one core: ours, ours by plain automatic differentiation, and PyTorch's.

    taskset -c 0 python -m benchmarks.blocks                                # ViT-S: 8 images of 197 tokens, width 384
    taskset -c 0 python -m benchmarks.blocks --shape=64,26,96 --heads=3     # the size of the quickstart

CPU time, which other work on the machine disturbs less than wall time; medians of alternating rounds, ratios to PyTorch's. The gradients
of the two JAX versions are compared before anything is timed. "Plain" replaces the functions of `sere_jax.ops.products` in the ViT.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"

import jax
import jax.numpy as jnp
import numpy as np
import torch

from sere_jax.models import vit
from sere_jax.ops.products import attention_weights
from tests.oracles.torch_vit import Block

PLAIN = {
    "attend": lambda q, k, v: attention_weights(q, k).astype(v.dtype) @ v,
    "dense_product": jax.lax.dot_general,
    "computed_once": lambda x: x,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="8,197,384", help="images, tokens, width")
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    shape = tuple(map(int, options.shape.split(",")))
    ours = jax_blocks(shape, options.heads, options.depth)
    with mock.patch.multiple(vit, **PLAIN):
        plain = jax_blocks(shape, options.heads, options.depth)
    for gradient, expected in zip(jax.tree.leaves(ours()), jax.tree.leaves(plain()), strict=True):
        # The same sums in another order, over thousands of rows: by the tensor's largest entry.
        np.testing.assert_allclose(gradient, expected, atol=1e-5 * float(jnp.max(jnp.abs(expected))) + 1e-5)
    runs = {"ours": ours, "plain": plain, "PyTorch": torch_blocks(shape, options.heads, options.depth)}
    seconds = rounds(runs, options.rounds)
    for name, times in seconds.items():
        ratios = [theirs / own for theirs, own in zip(seconds["PyTorch"], times, strict=True)]
        rate = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{name:8} {1e3 * statistics.median(times):7.0f} ms, {rate} times PyTorch's rate")


def jax_blocks(shape: tuple[int, ...], heads: int, depth: int) -> Callable[[], Any]:
    """A compiled gradient of `depth` blocks by their parameters and their input."""
    block, x, weight = vit.Block(heads, jnp.float32), *(jax.random.normal(jax.random.key(i), shape) for i in range(2))
    params = [block.init(jax.random.key(2 + i), x, None) for i in range(depth)]

    def loss(params: Any, x: jax.Array) -> jax.Array:
        for block_params in params:
            x, _ = block.apply(block_params, x, None)
        return jnp.sum(x * weight)

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(params, x).compile()
    return lambda: jax.block_until_ready(gradient(params, x))


def torch_blocks(shape: tuple[int, ...], heads: int, depth: int) -> Callable[[], Any]:
    torch.set_num_threads(1)
    blocks = [Block(shape[-1], heads) for _ in range(depth)]
    x, weight = torch.randn(shape, requires_grad=True), torch.randn(shape)

    def run() -> None:
        tokens = x
        for block in blocks:
            tokens, _ = block(tokens)
        torch.sum(tokens * weight).backward()

    return run


def rounds(runs: dict[str, Callable[[], Any]], count: int) -> dict[str, list[float]]:
    """CPU seconds of each run in each round; the round before the first is not measured."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for measured in range(-1, count):
        for name, run in runs.items():
            start = time.process_time()
            run()
            if measured >= 0:
                seconds[name].append(time.process_time() - start)
    return seconds


if __name__ == "__main__":
    main()
