"""The rules of a pre-training config: every mistake is found, and all are listed at once, before anything compiles.

`config.keys` says for each key what its value must be, `config.cross.CROSS_RULES` what values must keep among each other, and
`config.unread` which keys a run never reads. A mistake is one line: the key, what was found, what was expected and, where there is
one, the nearest choice. Also here: how the configs of a resumed run may differ, and the config's JSON form.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from ml_collections import ConfigDict

from sere_jax.buckets import address_mistake, is_address
from sere_jax.config import unread
from sere_jax.config.cross import CROSS_RULES
from sere_jax.config.keys import KEYS, MACHINE_KEYS, RULES
from sere_jax.config.lengths import DURATION_KEYS, in_epochs
from sere_jax.config.names import flatten, nearest, unknown_key
from sere_jax.config.rule import Rule
from sere_jax.data.sources.open import folders
from sere_jax.writing import place, unknown_user

# The keys that name images, of pre-training and of evaluations.
SOURCE_KEYS = frozenset(
    {
        *("data.source", "eval.gallery", "eval.query", "eval.patch_train", "eval.patch_test"),
        *("source", "gallery", "query", "train", "validation", "test", "submission"),
    }
)


class ConfigError(ValueError):
    """The config cannot run. The message lists every mistake, one a line, below `heading` (by default how many there are in the config)."""

    def __init__(self, mistakes: Iterable[str], heading: str = ""):
        self.mistakes = list(mistakes)
        heading = heading or f"{counted(self.mistakes)} in the config"
        super().__init__(f"{heading}:\n" + "\n".join("  " + line for line in self.mistakes))


def counted(mistakes: Sequence[str]) -> str:
    """`1 mistake`, `2 mistakes`."""
    return f"{len(mistakes)} mistake{'s' if len(mistakes) != 1 else ''}"


def refusal(mistakes: Sequence[str]) -> ConfigError:
    """The error of a program whose command line and config have these mistakes: some of them may be in no config."""
    return ConfigError(mistakes, heading=f"{counted(mistakes)}, nothing was started")


def workdir_mistakes(workdir: str | None, sources: Mapping[str, Any] | None = None) -> list[str]:
    """Why nothing can be written to a workdir. `sources` maps the keys of a config that name images to their values.

    Nothing is asked of a bucket: whether it can be written is known when the lock is taken. A workdir below a folder of images is
    refused, because the figures of a run would become images of the next.
    """
    if not workdir:
        return []
    if is_address(workdir):
        mistake = address_mistake(workdir)
        return [f"--workdir: found {workdir!r}, {mistake}"] if mistake else _below_images(workdir, sources or {})
    path = place(workdir)
    if user := unknown_user(workdir):
        return [f"--workdir: found {workdir!r}, expected a directory; there is no user {user!r}. A directory of that name is ./{workdir}"]
    files = [parent for parent in (path, *path.parents) if os.path.exists(parent) and not os.path.isdir(parent)]
    if files:
        return [f"--workdir: found {workdir!r}, expected a directory, there or not; {files[0]} is a file"]
    return _below_images(workdir, sources or {})


def _below_images(workdir: str, sources: Mapping[str, Any]) -> list[str]:
    path = _resolved(workdir)
    return [
        f"--workdir: found {workdir!r}, expected a directory that is not below {directory}, whose images {key} reads"
        for key, spec in sources.items()
        if isinstance(spec, str)
        for directory in folders(spec)
        if is_address(directory) == is_address(workdir) and path.is_relative_to(_resolved(directory))
    ]


def _resolved(path: str) -> PurePath:
    """Where links lead; of an address, its bucket and name."""
    return PurePosixPath(path.partition("://")[2]) if is_address(path) else Path(place(path)).resolve()


def sources(config: ConfigDict) -> dict[str, Any]:
    """The keys of a config, of pre-training or of an evaluation, that name images, with their values."""
    return {key: value for key, value in flatten(config).items() if key in SOURCE_KEYS}


def validate(config: ConfigDict, *, devices: int, processes: int, to_fit: Collection[str] = ()) -> None:
    """Refuse a config that cannot run on `devices` devices of `processes` processes in all; 0 devices: their number is not known yet.

    Durations in `to_fit` may be longer than the run. Mistakes that only the data can show (a data set smaller than a batch, a warm-up
    longer than `schedule.total_steps`) are found when it is opened: `length_mistakes`. Raises ConfigError with every mistake.
    """
    lines = mistakes(config, devices=devices, processes=processes, to_fit=to_fit)
    if lines:
        raise ConfigError(lines)


def mistakes(config: ConfigDict, *, devices: int, processes: int, to_fit: Collection[str] = ()) -> list[str]:
    """The mistakes of `validate`, as lines."""
    values = flatten(config)
    lines = check(values, RULES)
    wrong = {line.partition(":")[0] for line in lines}
    for keys, rule in CROSS_RULES:
        # A rule among values says something only where each value is right by itself.
        if not wrong & set(keys):
            lines += rule({key: values[key] for key in keys}, devices, processes)
    if not wrong & {*DURATION_KEYS, *unread.SWITCHES}:
        lines += in_epochs(values, but=to_fit)
    if not unread.SWITCHES & wrong:
        reported = {line.partition(":")[0] for line in lines}
        lines += [
            f"{key}: found {values[key]!r}, which is never read: {why}; expected its default, {KEYS[key].default!r}"
            for key, why in unread.changed(values).items()
            if key not in reported
        ]
    return lines


def check(values: Mapping[str, Any], rules: Mapping[str, Rule]) -> list[str]:
    """The lines of the mistakes that flat `values` make against `rules`: unknown, missing and refused ones."""
    lines = [f"{key}: {unknown_key(key, rules)}" for key in values if key not in rules]
    for key, rule in rules.items():
        if key not in values:
            lines.append(f"{key}: missing, expected {rule.expected()}")
        elif not rule.accepts(values[key]):
            lines.append(f"{key}: found {values[key]!r}, expected {rule.expected()}{nearest(values[key], rule.choices)}")
    return lines


def differences(saved: Mapping[str, Any] | ConfigDict, current: Mapping[str, Any] | ConfigDict) -> list[str]:
    """Lines `key: saved ..., now ...` where a checkpoint's config and this one learn something else.

    `MACHINE_KEYS` may differ. So may `data.source`, because the same files may lie elsewhere: who compares runs compares their listings.
    """
    old, new = flatten(saved), flatten(current)
    lines = []
    for key in sorted(old.keys() | new.keys()):
        if key in MACHINE_KEYS or key == "data.source":
            continue
        was, now = (repr(side[key]) if key in side else "no such key" for side in (old, new))
        if was != now and (key not in old or key not in new or old[key] != new[key]):
            lines.append(f"{key}: saved {was}, now {now}")
    return lines


def to_json(config: ConfigDict) -> str:
    """The config as JSON text; tuples are written as lists and read back as tuples by `from_json`."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True, allow_nan=False)


def from_json(text: str) -> ConfigDict:
    """The config that `to_json` wrote: equal to it, tuples and all. Raises ValueError on text that is not JSON."""
    return ConfigDict(from_json_tree(json.loads(text)))


def from_json_tree(value: Any) -> Any:
    """What JSON made of a config, with its lists turned back into tuples; `checkpoint.read_config` returns such a tree."""
    if isinstance(value, dict):
        return {key: from_json_tree(inner) for key, inner in value.items()}
    return tuple(from_json_tree(inner) for inner in value) if isinstance(value, list) else value
