"""Arguments that several programs read: `key=value,...` of a config file (`configs.common` says how it is written), and `--shard`."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from sere_jax.config.launch import Adjusted, both_lengths, settle
from sere_jax.config.names import flatten, unknown_key


class ArgumentError(ValueError):
    """Parts of an argument are refused. `refused` are these parts as they were written, so that the rest can be read alone."""

    def __init__(self, mistakes: list[str], refused: list[str]):
        super().__init__("mistakes in the config's argument:\n" + "\n".join("  " + line for line in mistakes))
        self.refused = refused


def arguments(config: ConfigDict, arg: str) -> ConfigDict:
    """`config` with the `key=value,...` of a config file's argument set; an empty `arg` changes nothing.

    Values are read by the type of the default: `true`/`false`, numbers, text, and tuples as `(0.2,1.0)`. What follows from
    them is changed too (`launch.settle`), with a warning of class `launch.Adjusted` for each line that it returns.

    Raises ArgumentError that lists every mistake: a part without `=`, an unknown or ambiguous key, a key that is given twice,
    a value of another type, the length of the run both in epochs and in steps.
    """
    before = flatten(config)
    said: set[str] = set()
    mistakes, refused = [], []
    for part in split(arg):
        key, equals, text = part.strip().partition("=")
        matches = matching(key, before)
        try:
            if not equals or len(matches) != 1:
                raise ValueError(_bad_key(part.strip(), key, equals, matches, before))
            [path] = matches
            if path in said:
                raise ValueError(f"{path}: found twice, expected once")
            config.update_from_flattened_dict({path: _value(path, text, before[path])})
            said.add(path)
        except ValueError as error:
            mistakes.append(str(error))
            refused.append(part)
    if lines := both_lengths(said):
        mistakes += lines
        refused += [part for part in split(arg) if matching(part.strip().partition("=")[0], before) == ["schedule.total_steps"]]
    if mistakes:
        raise ArgumentError(mistakes, refused)
    for line in settle(config, before, said):
        warnings.warn(line, Adjusted, stacklevel=3)
    return config


def said_keys(arg: str, paths: Iterable[str]) -> list[str]:
    """The full paths of the keys that an argument gives, in its order. Parts that are no key are left out."""
    matches = (matching(part.strip().partition("=")[0], paths) for part in split(arg) if "=" in part)
    return [match[0] for match in matches if len(match) == 1]


def shard(text: str) -> tuple[int, int]:
    """The I and N of `--shard=I/N`: the number of a machine, from 0, and how many share the work. Raises ValueError for other texts.

    Example:
      >>> shard("3/8")
      (3, 8)
    """
    number, slash, of = text.partition("/")
    if not (slash and number.isdecimal() and of.isdecimal() and int(number) < int(of)):
        raise ValueError(f"--shard: found {text!r}, expected I/N with I from 0 to N - 1, as in --shard=0/8")
    return int(number), int(of)


def matching(key: str, paths: Iterable[str]) -> list[str]:
    """The paths that `key` may mean: itself, else those that end with it, of which one of `data` comes before all others."""
    paths = list(paths)
    ends = [key] if key in paths else [path for path in paths if path.endswith("." + key)]
    return [f"data.{key}"] if f"data.{key}" in ends else ends


def split(arg: str) -> list[str]:
    """The parts of an argument: it is cut at the commas outside parentheses."""
    return [part for part in re.split(r",(?![^(]*\))", arg) if part.strip()]


def _bad_key(part: str, key: str, equals: str, matches: list[str], paths: Iterable[str]) -> str:
    if not equals:
        return f"found {part!r}, expected key=value"
    if matches:
        return f"{key}: several keys end with it, expected one of {', '.join(matches)}"
    return f"{key}: {unknown_key(key, paths)}"


def _value(key: str, text: str, default: Any) -> Any:
    if isinstance(default, str):
        return text
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{key}: found {text!r}, expected true or false")
        return text.lower() == "true"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = None
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    if type(value) is not type(default):
        raise ValueError(f"{key}: found {text!r}, expected {type(default).__name__}, as in {default!r}")
    return value
