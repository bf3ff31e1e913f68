"""A bad step: kept by the run in which it happened, and repeated by a run in the directory that was kept."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator, Iterator
from typing import cast

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sere_jax import sharding
from sere_jax.buckets import Location
from sere_jax.data.batches.order import example_index
from sere_jax.data.sources.example import Source
from sere_jax.data.sources.mixture import Mixture
from sere_jax.reporting.progress import Progress
from sere_jax.train import bad_steps
from sere_jax.train.checkpoint import listed, named_leaves
from sere_jax.train.finite import is_sound
from sere_jax.train.state import State
from sere_jax.train.step import PretrainStep
from sere_jax.train.update import keep_finite
from sere_jax.types import Views


def keep(config: ConfigDict, directory: Location, source: Source, progress: Progress, step: int) -> None:
    """Keep what repeats the first step that was skipped; its images are those before unreadable ones were replaced."""
    if jax.process_index() != 0:
        return
    size = config.data.batch_size
    examples = source.shares if isinstance(source, Mixture) else len(source)
    images = [example_index(config.seed, (step - 1) * size + row, examples, size) for row in range(size)]
    argv = sys.argv if sys.argv[0].endswith("train.py") else ()
    with contextlib.suppress(OSError):  # a full disk must not end the run for it
        if sentence := bad_steps.keep(directory, step, {"seed": config.seed, "source": source.spec, "images": images}, argv):
            progress.note(sentence)


def repeat(train_step: PretrainStep, step: int, state: State, batches: Iterator[Views], mesh: Mesh) -> str:
    """Take a step from the state before it with the first of `batches`; a sentence on what in it is not finite.

    The step is compiled once more, with an answer for each leaf. Every process calls this alike.
    """
    with contextlib.closing(cast(Generator[Views], batches)):
        views = sharding.to_global(next(batches), mesh=mesh)

    def look(state: State, views: Views) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        after, gradients, output = train_step.propose(state, views)
        parts = {"gradient": gradients, "statistics": output.statistics, "metrics": output.metrics, "next": after}
        _, metrics = keep_finite(state, after, gradients, output)
        return metrics, {name: is_sound(leaf) for name, leaf in named_leaves(parts).items()}

    everywhere = sharding.replicated(mesh)
    metrics, sound = jax.device_get(jax.jit(look, out_shardings=(everywhere, everywhere))(state, views))
    numbers = f"loss {metrics['loss']:g}, grad_norm {metrics['grad_norm']:g}"
    if not metrics["bad_step"]:
        return f"step {step} was repeated and is good here: {numbers}. Other devices, packages or images make another step"
    lost = [name for name, answer in sound.items() if not answer]
    return (
        f"step {step} was repeated and is bad again: {numbers}. NaN, infinite or above 1e19: {listed(lost)} ({len(lost)} of {len(sound)})"
    )
