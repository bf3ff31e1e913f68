"""What a launch changes beside the keys that it gives.

A config file and a launch may contradict each other. Then the launch wins, and values that only made sense with the file's values
change too. `settle` and, once the data is open, `fitted` change them; both return a line for each change that a person must know of.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

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


class Launch(NamedTuple):
    """The keys that a launch gives, the length that the run has without them, and the config file.

    Attributes:
      said: full paths of the keys, in the file's argument and as overrides.
      epochs, total_steps: `schedule.epochs` and `schedule.total_steps` without the launch. As everywhere, steps come first.
      file: the config file with its argument, as it was written; "" where a program made the config.
      values: what this file gives with its argument, by the full paths of the keys.
    """

    said: frozenset[str] = frozenset()
    epochs: int = 0
    total_steps: int = 0
    file: str = ""
    values: Mapping[str, Any] = {}

    @property
    def to_fit(self) -> frozenset[str]:
        """The durations that `fitted` may still shorten, so that their length is no mistake before the data is open."""
        in_other_units = EPOCHS in self.said and self.total_steps > 0
        return frozenset(lengths.DURATION_KEYS) - self.said if in_other_units else frozenset()

    def record(self, config: ConfigDict) -> dict[str, Any]:
        """The config file, and each key whose value in `config` is another than the file's. For `launch.json`, which reports read.

        Values changed by the command line are told from those that `settle` and `fitted` changed because of it.

        >>> launch = Launch(frozenset({"seed"}), file="configs/small.py:workers=0", values={"seed": 0, "data.workers": 0})
        >>> launch.record(ConfigDict({"seed": 3, "data": {"workers": 0}}))["changed"]
        {'seed': {'file': 0, 'run': 3, 'by': 'command line'}}
        """
        values = flatten(config) if self.file else {}
        changed = {
            key: {"file": self.values[key], "run": value, "by": "command line" if key in self.said else "what follows from it"}
            for key, value in values.items()
            if key in self.values and self.values[key] != value
        }
        return {"config_file": self.file, "changed": changed}


def both_lengths(said: Collection[str]) -> list[str]:
    """The mistake of a launch that gives the length of the run twice, in epochs and in steps."""
    if not {EPOCHS, STEPS} <= set(said):
        return []
    return [f"{EPOCHS}, {STEPS}: found both in one launch, expected one of them: each is the length of the run"]


def settle(config: ConfigDict, before: Mapping[str, Any], said: Collection[str]) -> list[str]:
    """Change the values of `config` that follow from the keys of the launch (`said`), and return the lines to show.

    `before` are the flat values of the config without these keys. Keys of the launch are never changed.

    - `schedule.epochs` overrides the file's `schedule.total_steps`. (The reverse needs nothing: steps come first.)
    - Durations that do not fit into a run that the launch made shorter keep their share of it. Where the file or the launch gives the
      length in steps, `fitted` does this once the data is open.
    - A file's k-NN on the bundled photographs is switched off where the launch names other images.
    - The file's values for parts that the launch switches off become defaults. Nothing reads them any more, so no line is shown.

    The config of an evaluation, which has no recipe, does not change.
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
    """Shorten the durations where both lengths of the run are in epochs. `fitted` does it where one of them is in steps."""
    epochs, epochs_before = config.schedule.epochs, before[EPOCHS]
    if EPOCHS not in said or before[STEPS] or not 0 < epochs < epochs_before or not unread.readable(flatten(config)):
        return []
    return _shorten(config, epochs / epochs_before, said, per_epoch=1, total=epochs)


def fitted(config: ConfigDict, launch: Launch, *, per_epoch: int, total: int) -> list[str]:
    """Shorten the durations that do not fit into a run of `total` steps that the launch made shorter; return a line for each.

    Durations that the launch gives stay, and `lengths.length_mistakes` refuses them. So do those of a run that is not shorter than the
    file's own, because then the file contradicts itself.
    """
    total_before = launch.total_steps or launch.epochs * per_epoch
    if not launch.said & {EPOCHS, STEPS} or not 0 < total < total_before:
        return []
    return _shorten(config, total / total_before, launch.said, per_epoch=per_epoch, total=total)


def _shorten(config: ConfigDict, share: float, said: Collection[str], *, per_epoch: int, total: int) -> list[str]:
    too_long = lengths.too_long(flatten(config), per_epoch=per_epoch, total=total)
    keys = [duration.key for duration in too_long if duration.key not in said]
    return lengths.shorten(config, share, per_epoch=per_epoch, total=total, keys=keys)


def _bundled(config: ConfigDict, said: Collection[str]) -> list[str]:
    if "data.source" not in said or str(config.data.source).startswith("bundled"):
        return []
    off = [key for key in ("gallery", "query") if str(config.eval[key]).startswith("bundled") and f"eval.{key}" not in said]
    config.eval.update(dict.fromkeys(off, ""))
    if off and not (config.eval.gallery or config.eval.query or config.eval.patch_train):
        never = {"run.eval_every_steps": 0, "run.eval_every_epochs": 0, "run.keep_best": ""}
        config.update_from_flattened_dict({key: value for key, value in never.items() if key not in said})
    why = f"the bundled photographs say little about {config.data.source}; name labelled images to evaluate during the run"
    return [f"{', '.join(f'eval.{key}' for key in off)}: switched off, because {why}"] if off else []
