"""The lengths of tokens after every block: do a few patches grow far longer than the others?

Source: Darcet et al. 2024, "Vision transformers need registers": in long trainings some patches of even background become registers with
a norm many times the others', and dense features suffer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from sere_jax.config.cross import resize_before_crop
from sere_jax.config.keys import RULES as TRAINING
from sere_jax.config.rule import BOOL, TEXT, Rule, count, number
from sere_jax.data.batches.whole_images import EvalBatch, eval_batches
from sere_jax.data.images.reading import ImageReading
from sere_jax.data.sources.open import open_source
from sere_jax.evals.features import normalise
from sere_jax.evals.frozen.comparison import SIDE
from sere_jax.evals.network import EvalError, Network, prepared, shared_reading, untrained
from sere_jax.evals.pictures import left_out_note, names
from sere_jax.evals.protocol import Protocol
from sere_jax.reporting import table
from sere_jax.reporting.progress import track


class Settings(NamedTuple):
    """The keys of `configs/eval/norms.py`."""

    source: str
    times: float  # a patch token is long if its norm is above so many times the block's median
    size: int
    resize: int
    batch_size: int
    reading: ImageReading
    random: bool
    seed: int


class Norms(NamedTuple):
    """The norms of the tokens after one block."""

    block: int  # from 1
    cls: float  # mean of the cls tokens
    median: float  # of the patch tokens, as are the next
    high: float  # 99th percentile
    largest: float
    long_share: float  # share above `times` x median


def summarise(block: int, cls: Float[np.ndarray, " b"], patches: Float[np.ndarray, "b n"], times: float) -> Norms:
    """The summary of one block's norms.

    >>> summarise(1, np.array([2.0]), np.array([[1.0, 1.0, 1.0, 9.0]]), 3.0).long_share
    0.25
    """
    median = float(np.median(patches))
    share = float(np.mean(patches > times * median))
    return Norms(block, float(cls.mean()), median, float(np.quantile(patches, 0.99)), float(patches.max()), share)


def measure(network: Network, batches: Iterable[EvalBatch], times: float) -> list[Norms]:
    """One summary a block, over all images that can be read. Raises EvalError for a ResNet, and where there is no image."""
    if not network.depth:
        raise EvalError(f"{network.name}: is no ViT, expected one: a ResNet has no tokens")
    layers = tuple(range(network.depth))

    @jax.jit
    def lengths(params: Any, images: Any) -> list[jax.Array]:
        features = network.apply(params, normalise(images, network.mean, network.std), layers=layers)
        return [jnp.linalg.norm(tokens.astype(jnp.float32), axis=-1) for tokens in features.layers]

    parts = [[np.asarray(block)[batch.valid] for block in lengths(network.params, batch.images)] for batch in batches]
    if not sum(len(part[0]) for part in parts):
        raise EvalError("images: found none that can be read; expected at least one")
    blocks = [np.concatenate(block) for block in zip(*parts, strict=True)]
    return [summarise(number, norms[:, 0], norms[:, 1:], times) for number, norms in enumerate(blocks, 1)]


def run(networks: Sequence[Network], workdir: Path, settings: Settings) -> None:
    """Print a table and write workdir/eval/norms.json. Process 0 does all the work."""
    if jax.process_index() != 0:
        return
    reading = shared_reading(networks, settings.reading)
    compared = [*networks, *([untrained(networks[0], settings.seed)] if settings.random else [])]
    sides = [prepared(network, settings.size, settings.resize) for network in compared]  # all, before the first is measured
    source, unreadable = open_source(settings.source), set[int]()
    rows, results = [], []
    for network, (size, resize) in zip(compared, sides, strict=True):
        batches = eval_batches(source, size=size, resize=resize, batch_size=settings.batch_size, reading=reading)
        tracked = track(batches, f"{network.name}: {len(source):,} images", -(-len(source) // settings.batch_size))
        of_blocks = measure(network, _noting(tracked, unreadable), settings.times)
        results.append({"name": network.name, **network.about, "blocks": {str(norms.block): norms._asdict() for norms in of_blocks}})
        for norms in of_blocks:
            numbers = (norms.cls, norms.median, norms.high, norms.largest)
            rows.append([f"{network.name}, block {norms.block}", *(f"{value:.1f}" for value in numbers), f"{100 * norms.long_share:.2f}"])
    left_out, read = names(source, sorted(unreadable)), len(source) - len(unreadable)
    notes = [
        f"{read:,} images of {settings.source}; norms of tokens before the final norm",
        f"long = above {settings.times:g} x the median of the block's patch tokens, % of them",
        *filter(None, [left_out_note("images", left_out, len(source))]),
    ]
    table.show("Norms of tokens", ["", "cls\nmean", "patches\nmedian", "patches\n99 %", "patches\nlargest", "long, %"], rows, notes)
    about = {"protocol": "norms", "source": settings.source, "read": read, "left_out": left_out}
    table.write(workdir / "eval" / "norms.json", {**about, "results": results, "notes": notes})


def _noting(batches: Iterable[EvalBatch], unreadable: set[int]) -> Iterator[EvalBatch]:
    """The batches; the positions of images that cannot be read are added to `unreadable`."""
    for batch in batches:
        unreadable.update(batch.index[(batch.index >= 0) & ~batch.valid].tolist())
        yield batch


def _among(values: Any, wrong: Any, processes: int) -> list[str]:
    return [] if {"size", "resize"} & set(wrong) else resize_before_crop("", values["size"], values["resize"])


PROTOCOL = Protocol(
    "norms",
    {
        "source": TEXT,
        "times": number(1.0),
        "size": SIDE,
        "resize": SIDE,
        "batch_size": count(1),
        "backend": TRAINING["data.backend"],
        "random": BOOL,
        "seed": Rule(int, low=0),
    },
    Settings,
    run,
    among=_among,
)
