"""Linear classifiers on cached features: a grid of learning rates and kinds of features, trained at once.

The protocol `linear` calls this for `cached=True`:

    heads = train(features, labels, columns, classes=10, settings=GridSettings(rates=(0.1, 1.0), epochs=100))
    accuracy = accuracies(heads, validation_features, validation_labels, columns)  # kind -> one share for each rate
    best = best_head(accuracy)
    predicted = logits(heads, test_features, columns, best)

Features are one array [n, D]; a kind of features (`cls of 4 blocks`, ...) is a range of its columns, so that kinds share memory.
Heads that read the same columns are one matrix product: their kernels are stacked along an axis r, and the learning rate is a
vector. Heads do not influence each other: a rate that diverges spoils its own head only.

Source: the linear evaluation of DINO (Caron et al. 2021) and of iBOT, which trains one head for each of 45 rates.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Float, Int

from sere_jax.evals.network import EvalError
from sere_jax.reporting.progress import track
from sere_jax.types import Array

RATES = tuple(float(f"{digit}e{power}") for power in range(-4, 1) for digit in range(1, 10))  # iBOT's 45
_LOGITS = 2**24  # of one prediction, all heads together; bounds its memory to 64 MiB
Columns = Mapping[str, tuple[int, int]]  # kind of features -> first column, end


@dataclass(frozen=True)
class GridSettings:
    """Settings of the training. An epoch is floor(n / batch) steps; a batch larger than the data is reduced to it."""

    rates: tuple[float, ...] = RATES  # for 256 images: SGD's rate is rate x batch / 256
    epochs: int = 100
    batch_size: int = 1024
    momentum: float = 0.9
    weight_decay: float = 0.0
    seed: int = 0


class Heads(NamedTuple):
    """The classifiers of one kind of features, one for each rate: logits[r] = features @ kernel[:, r] + bias[r]."""

    kernel: Float[Array, "d r c"]
    bias: Float[Array, "r c"]


class Head(NamedTuple):
    """The name of one classifier of the grid."""

    kind: str
    rate: int  # position in `GridSettings.rates`


def train(
    features: Float[np.ndarray, "n D"], labels: Int[np.ndarray, " n"], columns: Columns, *, classes: int, settings: GridSettings
) -> dict[str, Heads]:
    """Train len(columns) x len(rates) classifiers by SGD with momentum on the mean cross-entropy of a batch.

    The rate follows a cosine to 0, constant within an epoch: rate x batch / 256 x (1 + cos(pi epoch / epochs)) / 2. Kernels start
    from N(0, 0.01), biases from 0. All heads see the same batches (`batches`). The devices of a process share the heads of each
    kind, and every process trains all of them, so the result does not depend on the number of either. Features are copied to
    every device once.

    Raises EvalError for no images and for labels that are no classes.

    >>> features, labels = np.eye(4, dtype=np.float32)[[0, 1] * 8], np.array([0, 1] * 8)
    >>> heads = train(features, labels, {"all": (0, 4)}, classes=2, settings=GridSettings(rates=(1e-9, 9.0), epochs=20, batch_size=8))
    >>> accuracies(heads, features, labels, {"all": (0, 4)})["all"][1]
    1.0
    """
    if not len(labels):
        raise EvalError("features: found no images; expected at least one")
    if labels.min() < 0 or labels.max() >= classes:
        raise EvalError(f"labels: found {labels.min()} to {labels.max()}; expected 0 to {classes - 1}")
    count, shards = len(settings.rates), jax.local_device_count()
    mesh = jax.make_mesh((shards,), ("heads",), axis_types=(AxisType.Auto,), devices=jax.local_devices())
    everywhere = NamedSharding(mesh, PartitionSpec())
    kernels, biases = NamedSharding(mesh, PartitionSpec(None, "heads")), NamedSharding(mesh, PartitionSpec("heads"))
    padded = -(-count // shards) * shards  # heads of rate 0 make the devices' shares equal
    batch = min(settings.batch_size, len(labels))
    rates = np.zeros(padded)
    rates[:count] = np.asarray(settings.rates) * batch / 256
    first = first_heads(columns, padded, classes, settings.seed)
    shardings: Any = {kind: Heads(kernels, biases) for kind in first}  # type: ignore[arg-type]  # shardings in the places of arrays
    heads, momenta = jax.device_put(first, shardings), jax.device_put(jax.tree.map(np.zeros_like, first), shardings)
    images, targets = jax.device_put(np.asarray(features, np.float32), everywhere), jax.device_put(labels.astype(np.int32), everywhere)
    run = functools.partial(_epoch, columns=tuple(columns.items()), momentum=settings.momentum, decay=settings.weight_decay)
    label = f"linear: {count * len(columns)} heads on {len(labels):,} images"
    for epoch in track(range(settings.epochs), label, settings.epochs):
        rows = jax.device_put(np.stack(list(batches(len(labels), batch, settings.seed, epoch))), everywhere)
        cosine = (1 + math.cos(math.pi * epoch / settings.epochs)) / 2
        rate = jax.device_put((rates * cosine).astype(np.float32), biases)
        heads, momenta = run(heads, momenta, images, targets, rows, rate)
    trained = jax.device_get(heads)
    return {kind: Heads(head.kernel[:, :count], head.bias[:count]) for kind, head in trained.items()}


def batches(images: int, batch: int, seed: int, epoch: int) -> Iterator[Int[np.ndarray, " b"]]:
    """The row numbers of each batch of an epoch: a permutation by (seed, epoch), cut into whole batches.

    >>> [rows.tolist() for rows in batches(5, 2, seed=0, epoch=0)]
    [[2, 4], [3, 0]]
    """
    order = np.random.default_rng((seed, epoch)).permutation(images).astype(np.int32)
    return (order[start : start + batch] for start in range(0, images - batch + 1, batch))


def accuracies(
    heads: Mapping[str, Heads], features: Float[np.ndarray, "n D"], labels: Int[np.ndarray, " n"], columns: Columns
) -> dict[str, list[float]]:
    """Top-1 accuracy of every head, by kind and in the order of the rates; 0 for a head that diverged."""
    result = {}
    for kind, head in heads.items():
        correct = np.zeros(head.bias.shape[0])
        rows = _rows(head)
        for start in range(0, len(labels), rows):
            part = predict(head, jnp.asarray(features[start : start + rows, slice(*columns[kind])]))
            usable = np.asarray(jnp.isfinite(part).all(axis=(0, 2)))
            predicted = np.asarray(jnp.argmax(part, axis=-1))
            correct += np.where(usable, (predicted == labels[start : start + rows, None]).sum(axis=0), -np.inf)
        result[kind] = [float(value) for value in np.maximum(correct, 0) / len(labels)]
    return result


def best_head(accuracy: Mapping[str, list[float]]) -> Head:
    """The head with the highest accuracy; of equals the first kind and the lowest position.

    >>> best_head({"cls of 1 block": [0.5, 0.7], "cls of 4 blocks": [0.7, 0.6]})
    Head(kind='cls of 1 block', rate=1)
    """
    heads = [Head(kind, rate) for kind, values in accuracy.items() for rate in range(len(values))]
    return max(heads, key=lambda head: accuracy[head.kind][head.rate])


def logits(heads: Mapping[str, Heads], features: Float[np.ndarray, "n D"], columns: Columns, head: Head) -> Float[np.ndarray, "n c"]:
    """The logits of one head."""
    one = Heads(heads[head.kind].kernel[:, head.rate : head.rate + 1], heads[head.kind].bias[head.rate : head.rate + 1])
    rows = _rows(one)
    parts = [features[start : start + rows, slice(*columns[head.kind])] for start in range(0, len(features), rows)]
    return np.concatenate([np.asarray(predict(one, jnp.asarray(part)))[:, 0] for part in parts])


def _rows(head: Heads) -> int:
    """How many images are predicted at a time."""
    return max(1, _LOGITS // head.bias.size)


def first_heads(columns: Columns, count: int, classes: int, seed: int) -> dict[str, Heads]:
    """The heads before training. All rates start from the same kernel, so that only the rate tells them apart."""
    result = {}
    for number, (kind, (first, end)) in enumerate(columns.items()):
        kernel = np.random.default_rng((seed, number)).normal(0, 0.01, (end - first, 1, classes)).astype(np.float32)
        result[kind] = Heads(np.repeat(kernel, count, axis=1), np.zeros((count, classes), np.float32))
    return result


@jax.jit
def predict(head: Heads, features: Float[Array, "b d"]) -> Float[jax.Array, "b r c"]:
    """The logits of all heads of one kind, in float32."""
    d, r, c = head.kernel.shape
    products = jnp.matmul(features, head.kernel.reshape(d, r * c), precision="highest")
    return products.reshape(-1, r, c) + head.bias


@functools.partial(jax.jit, static_argnames=("columns", "momentum", "decay"), donate_argnums=(0, 1))
def _epoch(
    heads: dict[str, Heads],
    momenta: dict[str, Heads],
    features: jax.Array,
    labels: jax.Array,
    rows: jax.Array,
    rates: jax.Array,
    *,
    columns: tuple[tuple[str, tuple[int, int]], ...],
    momentum: float,
    decay: float,
) -> tuple[dict[str, Heads], dict[str, Heads]]:
    """One pass over batches of rows [steps, b], as PyTorch's SGD: m = momentum m + gradient, then head = head - rate m."""

    def step(carry: tuple[dict[str, Heads], dict[str, Heads]], batch: jax.Array) -> tuple[tuple[dict[str, Heads], dict[str, Heads]], None]:
        heads, momenta = carry
        images, target = features[batch], labels[batch]
        new_heads, new_momenta = {}, {}
        for kind, (first, end) in columns:
            gradient = _gradient(heads[kind], images[:, first:end], target)
            new = jax.tree.map(lambda m, g, w: momentum * m + g + decay * w, momenta[kind], gradient, heads[kind])
            new_momenta[kind] = new
            new_heads[kind] = Heads(heads[kind].kernel - rates[:, None] * new.kernel, heads[kind].bias - rates[:, None] * new.bias)
        return (new_heads, new_momenta), None

    return jax.lax.scan(step, (heads, momenta), rows)[0]


def _gradient(head: Heads, features: jax.Array, labels: jax.Array) -> Heads:
    """Gradient of the mean cross-entropy: (softmax(logits) - one-hot) / b, times the features."""
    b, (d, r, c) = len(labels), head.kernel.shape
    error = (jax.nn.softmax(predict(head, features), axis=-1) - jax.nn.one_hot(labels, c)[:, None]) / b
    kernel = jnp.matmul(features.T, error.reshape(b, r * c), precision="highest")
    return Heads(kernel.reshape(d, r, c), error.sum(axis=0))
