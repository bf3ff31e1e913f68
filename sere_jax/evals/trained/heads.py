"""A grid of linear heads in the driver of trained evaluations: features of a frozen network, loss, optimizer.

A state holds {kind: {"kernel": [r, d, c], "bias": [r, c]}}, with one slice for each of r rates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Bool, Float, Int

from sere_jax import sharding
from sere_jax.data.batches.labelled import LabelledBatch
from sere_jax.evals import features
from sere_jax.evals.frozen import cached, linear_grid
from sere_jax.evals.frozen.linear_grid import GridSettings, Heads
from sere_jax.evals.network import Network
from sere_jax.train import optim
from sere_jax.train.update import LossOutput
from sere_jax.types import Array, PyTree


class FeatureBatch(NamedTuple):
    """What the heads learn from: a batch after the network."""

    features: Float[Array, "b D"]  # `cached.columns` says where each kind lies
    labels: Int[Array, "b"]
    replaced: Bool[Array, "b"]  # as of `LabelledBatch`


def heads_loss(columns: Mapping[str, tuple[int, int]]) -> Any:
    """The sum over all heads of the mean cross-entropy of a `FeatureBatch`, so that each head's gradient is its own."""

    def loss(params: PyTree, running: PyTree, batch: FeatureBatch, keys: jax.Array) -> tuple[jax.Array, LossOutput]:
        losses = []
        for kind, head in heads_of(params).items():
            logits = linear_grid.predict(head, batch.features[:, slice(*columns[kind])])
            labels = jnp.broadcast_to(batch.labels[:, None], logits.shape[:2])
            losses.append(jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels), axis=0))
        each = jnp.concatenate(losses)
        return jnp.sum(each), LossOutput(running, {"best_loss": jnp.min(each)})

    return loss


def optimizer(settings: GridSettings, per_epoch: int) -> optax.GradientTransformationExtraArgs:
    """PyTorch's SGD; every head at its own rate, which follows a cosine to 0 that is constant within an epoch."""
    rates = jnp.asarray(np.asarray(settings.rates) * settings.batch_size / 256, jnp.float32)

    def rate(step: jax.Array) -> jax.Array:
        return rates * (1 + jnp.cos(jnp.pi * (step // per_epoch) / settings.epochs)) / 2

    rules = optim.Rules(
        learning_rate=rate, weight_decay=lambda step: jnp.float32(settings.weight_decay), decayed=lambda path, dimensions: True
    )
    return optim.sgd(rules, momentum=settings.momentum)


def stacked_heads(columns: Mapping[str, tuple[int, int]], rates: int, classes: int, seed: int) -> dict[str, dict[str, np.ndarray]]:
    """`linear_grid.first_heads` with the rates on axis 0, as the optimizer wants them: kernel [r, d, c], bias [r, c]."""
    first = linear_grid.first_heads(columns, rates, classes, seed)
    return {kind: {"kernel": np.moveaxis(np.asarray(head.kernel), 1, 0), "bias": np.asarray(head.bias)} for kind, head in first.items()}


def heads_of(params: PyTree) -> dict[str, Heads]:
    """The heads of a state as `linear_grid` takes them."""
    return {kind: Heads(head["kernel"].swapaxes(0, 1), head["bias"]) for kind, head in params.items()}


def frozen_features(network: Network, blocks: int) -> Callable[[LabelledBatch], FeatureBatch]:
    """A function from a batch on the devices to its features by the network, whose parameters are copied to every device."""
    mesh = sharding.make_mesh()
    everywhere, rows = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    apply = cached.of_blocks(network, blocks)

    def compute(params: PyTree, pixels: jax.Array) -> jax.Array:
        normalised = features.normalise(pixels, network.mean, network.std)
        return features.pool(apply(params, normalised), features.BLOCKS)

    compiled = jax.jit(compute, in_shardings=(everywhere, rows), out_shardings=rows)
    params = jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(everywhere, np.asarray(leaf)), network.params)
    return lambda batch: FeatureBatch(compiled(params, batch.images), batch.labels, batch.replaced)
