"""What a launch changes beside the keys that it gives.

A config file and a launch may contradict each other. The launch wins, and what only made sense with the file's values
follows: `settle` does it, and returns a line for each change that a person must know of.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from sere_jax.config import lengths, unread
from sere_jax.config.names import flatten

EPOCHS, STEPS = "schedule.epochs", "schedule.total_steps"


class Adjusted(UserWarning):
    """A value of a config file was changed because the launch changed another."""


@contextlib.contextmanager
def adjustments() -> Iterator[list[str]]:
    """Collect the `Adjusted` warnings of the block as lines, each once, in place of showing them."""
    lines: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", Adjusted)
        yield lines
    for warning in caught:
        if not issubclass(warning.category, Adjusted):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        elif str(warning.message) not in lines:
            lines.append(str(warning.message))


def both_lengths(said: Collection[str]) -> list[str]:
    """The mistake of a launch that gives the length of the run twice, in epochs and in steps."""
    if not {EPOCHS, STEPS} <= set(said):
        return []
    return [f"{EPOCHS}, {STEPS}: found both in one launch, expected one of them: each is the length of the run"]


def settle(config: ConfigDict, before: Mapping[str, Any], said: Collection[str]) -> list[str]:
    """Change in `config` what follows from the keys that the launch gave (`said`), and return the lines to show.

    `before` are the flat values of the config without these keys. Keys that the launch gave are never changed.

    - `schedule.epochs` overrides the file's `schedule.total_steps`. (The reverse needs nothing: steps come first.)
    - Durations that are longer than a run that the launch made shorter keep their share of it.
    - A file's k-NN on the bundled photographs is switched off where the launch names other images.
    - What the file sets for parts that the launch switches off goes back to its default. It was read before and is not
      any more, so nothing is lost, and no line is shown.

    A config without a recipe (an evaluation's) is left as it is.
    """
    if "recipe" not in before:
        return []
    if EPOCHS in said and STEPS not in said:
        config.schedule.total_steps = 0
    lines = _bundled(config, said) + _durations(config, before, said)
    if unread.readable(before):
        unread.reset(config, unread.unread(before), but=said)
    return lines


def _durations(config: ConfigDict, before: Mapping[str, Any], said: Collection[str]) -> list[str]:
    """Of a run in epochs. A run in steps is seen to when its data is open: `lengths.fitted`."""
    epochs = config.schedule.epochs
    if EPOCHS not in said or not epochs or not unread.readable(flatten(config)):
        return []
    keys = [duration.key for duration in lengths.too_long(flatten(config), per_epoch=1, total=epochs) if duration.key not in said]
    return lengths.shorten(config, min(1.0, epochs / before[EPOCHS]) if before[EPOCHS] else 0.0, keys)


def _bundled(config: ConfigDict, said: Collection[str]) -> list[str]:
    if "data.source" not in said or str(config.data.source).startswith("bundled"):
        return []
    off = [key for key in ("gallery", "query") if str(config.eval[key]).startswith("bundled") and f"eval.{key}" not in said]
    config.eval.update(dict.fromkeys(off, ""))
    if off and not (config.eval.gallery or config.eval.query):
        never = {"run.eval_every_steps": 0, "run.eval_every_epochs": 0, "run.keep_best": ""}
        config.update_from_flattened_dict({key: value for key, value in never.items() if key not in said})
    why = f"the bundled photographs say little about {config.data.source}; name labelled images to evaluate during the run"
    return [f"{', '.join(f'eval.{key}' for key in off)}: switched off, because {why}"] if off else []
