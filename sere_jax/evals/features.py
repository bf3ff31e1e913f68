"""Features of many images, from an iterator of `EvalBatch` to NumPy arrays that are equal on any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Float, Int, UInt8

from sere_jax.evals import overlap
from sere_jax.evals.network import EvalError
from sere_jax.types import Features, PyTree

TOKENS = ("cls", "patches", "cls+patches")
BLOCKS = "blocks"  # the cls token of every requested block, then the mean patch token of the last; for an `apply` that returns layers
# On a CPU the images of a batch take turns, so that the activations of a turn stay in its caches: 4 images of 224 x 224 pixels.
_TURN_PIXELS = 4 * 224 * 224


class Extracted(NamedTuple):
    """Features of all images that could be read, in the order of the source; the same on every process."""

    features: Mapping[str, Float[np.ndarray, "n d"]]  # keyed by the kind of token
    labels: Int[np.ndarray, " n"]
    positions: Int[np.ndarray, " n"]  # in the source
    unreadable: Int[np.ndarray, " m"]  # positions of the images that could not be read


def pool(features: Features, tokens: str) -> Float[jax.Array, "b d"]:
    """One vector per image, after the final norm: the cls token, the mean patch token, both, or `BLOCKS`.

    The layers behind `BLOCKS` are as `apply` returned them: it must have been called with `layers_norm="post"`.
    """
    if tokens == BLOCKS:
        mean = jnp.mean(features.patches.astype(jnp.float32), axis=(1, 2))
        return jnp.concatenate([*(layer[:, 0].astype(jnp.float32) for layer in features.layers), mean], axis=-1)
    parts = {"cls": features.cls, "patches": jnp.mean(features.patches.astype(jnp.float32), axis=(1, 2))}
    return jnp.concatenate([parts[name].astype(jnp.float32) for name in tokens.split("+")], axis=-1)


def normalise(images: UInt8[Any, "b H W c"], mean: tuple[float, ...], std: tuple[float, ...]) -> Float[jax.Array, "b H W c"]:
    """(pixel / 255 - mean) / std per channel, in float32. It runs on the device, so that the transfer is uint8."""
    return (jnp.asarray(images).astype(jnp.float32) / 255 - jnp.asarray(mean)) / jnp.asarray(std)


def turn_size(shape: tuple[int, ...], devices: int) -> int:
    """The images of a turn for images [b, H, W, c] that `devices` share: all of them, except on a CPU that is one device."""
    if jax.default_backend() != "cpu" or devices > 1:
        return shape[0]
    return max(1, _TURN_PIXELS // (shape[1] * shape[2]))


def in_turns(function: Callable[[jax.Array], PyTree], images: UInt8[Any, "b H W c"], size: int) -> PyTree:
    """The same as `function(images)`, computed for `size` images at a time. The function must treat every image by itself.

    >>> in_turns(lambda images: images.sum((1, 2, 3)), jnp.ones((5, 2, 2, 3), jnp.uint8), 2)
    Array([12, 12, 12, 12, 12], dtype=uint32)
    """
    count = len(images)
    if count <= size:
        return function(jnp.asarray(images))
    padded = jnp.pad(images, [(0, -count % size), *[(0, 0)] * (images.ndim - 1)])
    parts = jax.lax.map(function, padded.reshape(-1, size, *images.shape[1:]))
    return jax.tree.map(lambda part: part.reshape(-1, *part.shape[2:])[:count], parts)


class Extractor:
    """A compiled function from parameters and batches to features. Create it once and call it with each new teacher.

    Each process handles its own rows. Its devices share the images of a batch and have a copy of the parameters each.
    Features are then gathered on all processes, so that all compute the same score.

    Args:
      apply: from parameters and normalised images [b, H, W, c] to `Features`.
      mean, std: of the normalisation, for pixels in [0, 1].
      tokens: some of `TOKENS`.

    Raises EvalError for an unknown kind of token.
    """

    def __init__(
        self,
        apply: Callable[[PyTree, jax.Array], Features],
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        tokens: tuple[str, ...] = ("cls",),
    ) -> None:
        for kind in tokens:
            if kind not in (*TOKENS, BLOCKS):
                raise EvalError(f"tokens: found {kind!r}; expected one of {', '.join(TOKENS)}")
        self.tokens = tokens
        mesh = jax.make_mesh((jax.local_device_count(),), ("data",), axis_types=(AxisType.Auto,), devices=jax.local_devices())
        self._copies, self._split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))

        def embed(params: PyTree, images: jax.Array) -> dict[str, jax.Array]:
            def turn(images: jax.Array) -> dict[str, jax.Array]:
                features = apply(params, normalise(images, mean, std))
                return {kind: pool(features, kind) for kind in tokens}

            return in_turns(turn, images, turn_size(images.shape, mesh.size))

        self._embed = jax.jit(embed, in_shardings=(self._copies, self._split), out_shardings=self._split)

    def __call__(self, params: PyTree, batches: Iterable[Any]) -> Extracted:
        """Extract the features of an iterator of `EvalBatch`, which is advanced in a thread. Raises EvalError if no image can be read."""
        params = jax.device_put(to_host(params), self._copies)
        rows: list[dict[str, np.ndarray]] = []

        def embed(batch: Any) -> dict[str, jax.Array]:
            images = _pad(np.asarray(batch.images), jax.local_device_count())
            return self._embed(params, jax.device_put(images, self._split))

        for batch, pooled in overlap.computed(batches, embed):
            row = {f"features/{kind}": value[: len(batch.valid)] for kind, value in pooled.items()}
            rows.append(row | {"labels": batch.labels, "index": batch.index, "valid": batch.valid})
        return collect(rows, self.tokens)


def extract(
    apply: Callable[[PyTree, jax.Array], Features],
    params: PyTree,
    batches: Iterable[Any],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    tokens: str = "cls",
) -> tuple[Float[np.ndarray, "n d"], Int[np.ndarray, " n"]]:
    """Features and labels of all readable images of `batches`. For repeated use make an `Extractor`, which compiles once."""
    extracted = Extractor(apply, mean=mean, std=std, tokens=(tokens,))(params, batches)
    return extracted.features[tokens], extracted.labels


def to_host(params: PyTree) -> PyTree:
    """Parameters as NumPy arrays. Those that are sharded over processes are gathered, so every process must call this."""

    def whole(leaf: Any) -> np.ndarray:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            return np.asarray(leaf)
        if leaf.is_fully_replicated:
            return np.asarray(leaf.addressable_data(0))
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))

    return jax.tree.map(whole, params)


def _pad(images: np.ndarray, multiple: int) -> np.ndarray:
    missing = -len(images) % multiple
    return np.concatenate([images, np.zeros((missing, *images.shape[1:]), images.dtype)]) if missing else images


def collect(rows: list[dict[str, np.ndarray]], tokens: tuple[str, ...]) -> Extracted:
    """Join the batches of all processes and sort them by the position in the source.

    Each row holds "features/KIND" for every kind of token, and "labels", "index" and "valid" of one `EvalBatch`. An example
    that several processes worked on counts once. An index of -1 is padding.

    Raises EvalError if no image can be read.
    """
    if not rows:
        raise EvalError("images: found none; expected a source with at least one image for each process")
    joined = {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}
    if jax.process_count() > 1:
        joined = _gather(joined)
    valid = np.flatnonzero(joined["valid"])
    if not len(valid):
        raise EvalError("images: found none that can be read; expected at least one")
    positions, first = np.unique(joined["index"][valid], return_index=True)
    order = valid[first]
    features = {kind: joined[f"features/{kind}"][order] for kind in tokens}
    unreadable = np.setdiff1d(joined["index"][joined["index"] >= 0], positions)
    return Extracted(features, joined["labels"][order].astype(np.int32), positions.astype(np.int32), unreadable.astype(np.int32))


def _gather(joined: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    # Processes may have different numbers of batches, so all pad to the longest with invalid rows.
    longest = int(np.max(multihost_utils.process_allgather(np.int32(len(joined["valid"])))))
    padded = {key: _padded(key, value, longest) for key, value in joined.items()}
    return {key: np.asarray(value) for key, value in multihost_utils.process_allgather(padded, tiled=True).items()}


def _padded(key: str, values: np.ndarray, length: int) -> np.ndarray:
    filler = np.full((length - len(values), *values.shape[1:]), -1 if key == "index" else 0, values.dtype)
    return np.concatenate([values, filler])
