"""Features of many images: from an iterator of `EvalBatch` to NumPy arrays, the same on any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Float, Int, UInt8

from sere_jax.evals.network import EvalError
from sere_jax.types import Features, PyTree

TOKENS = ("cls", "patches", "cls+patches")


class Extracted(NamedTuple):
    """Features in the order of the source, padded rows dropped, whole on every process."""

    features: Mapping[str, Float[np.ndarray, "n d"]]  # by the kind of token asked for
    labels: Int[np.ndarray, " n"]
    positions: Int[np.ndarray, " n"]  # in the source


def pool(features: Features, tokens: str) -> Float[jax.Array, "b d"]:
    """One vector an image: the cls token after the final norm, the mean of the patch tokens after it, or both end to end."""
    parts = {"cls": features.cls, "patches": jnp.mean(features.patches.astype(jnp.float32), axis=(1, 2))}
    return jnp.concatenate([parts[name].astype(jnp.float32) for name in tokens.split("+")], axis=-1)


def normalise(images: UInt8[Any, "b H W c"], mean: tuple[float, ...], std: tuple[float, ...]) -> Float[jax.Array, "b H W c"]:
    """(pixel / 255 - mean) / std per channel, in float32 and on the device: a quarter of the bytes travel."""
    return (jnp.asarray(images).astype(jnp.float32) / 255 - jnp.asarray(mean)) / jnp.asarray(std)


class Extractor:
    """A compiled function from parameters and batches to features; make it once, call it with every new teacher.

    Each process works on its own rows with its own devices (images split over them, parameters copied to each), and
    the features are then gathered everywhere, so that a score is computed once on the same numbers by all.
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
            if kind not in TOKENS:
                raise EvalError(f"tokens: found {kind!r}; expected one of {', '.join(TOKENS)}")
        self.tokens = tokens
        mesh = jax.make_mesh((jax.local_device_count(),), ("data",), axis_types=(AxisType.Auto,), devices=jax.local_devices())
        self._copies, self._split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))

        def embed(params: PyTree, images: jax.Array) -> dict[str, jax.Array]:
            features = apply(params, normalise(images, mean, std))
            return {kind: pool(features, kind) for kind in tokens}

        self._embed = jax.jit(embed, in_shardings=(self._copies, self._split), out_shardings=self._split)

    def __call__(self, params: PyTree, batches: Iterable[Any]) -> Extracted:
        """Run over `EvalBatch`es of one size. Raises EvalError where there is not one valid image."""
        params = jax.device_put(to_host(params), self._copies)
        rows: list[dict[str, np.ndarray]] = []
        for batch in batches:
            images = _pad(np.asarray(batch.images), jax.local_device_count())
            found = self._embed(params, jax.device_put(images, self._split))
            row = {f"features/{kind}": np.asarray(value)[: len(batch.valid)] for kind, value in found.items()}
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
    """Features and labels of all valid images of `batches`, once. See `Extractor`, which compiles for repeated use."""
    found = Extractor(apply, mean=mean, std=std, tokens=(tokens,))(params, batches)
    return found.features[tokens], found.labels


def to_host(params: PyTree) -> PyTree:
    """Whole parameters as NumPy arrays on every process, also of parameters that are sharded over processes."""

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
    """Put batches of all processes together: "features/KIND", "labels", "index" and "valid" of each, in order of `index`.

    An example that several processes worked on counts once. Raises EvalError where there is not one valid example.
    """
    if not rows:
        raise EvalError("images: found none; expected a source with at least one image for each process")
    whole = {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}
    if jax.process_count() > 1:
        whole = _gather(whole)
    valid = np.flatnonzero(whole["valid"])
    if not len(valid):
        raise EvalError("images: found none that can be read; expected at least one")
    positions, first = np.unique(whole["index"][valid], return_index=True)
    order = valid[first]
    features = {kind: whole[f"features/{kind}"][order] for kind in tokens}
    return Extracted(features, whole["labels"][order].astype(np.int32), positions.astype(np.int32))


def _gather(whole: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    # Processes may have worked on different numbers of batches: agree on the longest, the rest is padding (valid = False).
    longest = int(np.max(multihost_utils.process_allgather(np.int32(len(whole["valid"])))))
    padded = {key: np.concatenate([v, np.zeros((longest - len(v), *v.shape[1:]), v.dtype)]) for key, v in whole.items()}
    return {key: np.asarray(value) for key, value in multihost_utils.process_allgather(padded, tiled=True).items()}
