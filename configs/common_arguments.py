"""The argument of a config file, `key=value` joined by commas, read into its config; `configs.common` says how it is written."""

from __future__ import annotations

import ast
import difflib
import re
from typing import Any

from ml_collections import ConfigDict


class ArgumentError(ValueError):
    """Parts of an argument are refused. `refused` holds them as they stood between its commas, so that the rest can be read alone."""

    def __init__(self, mistakes: list[str], refused: list[str]):
        super().__init__("mistakes in the config's argument:\n" + "\n".join("  " + line for line in mistakes))
        self.refused = refused


def arguments(config: ConfigDict, arg: str) -> ConfigDict:
    """`config` with the `key=value,...` of a config file's argument set; `arg` empty changes nothing.

    Values are read by the type of the default: `true`/`false`, numbers, text, and tuples as `(0.2,1.0)`.

    Raises ArgumentError that lists every mistake: a part without `=`, an unknown or ambiguous key, a value of another type.
    """
    paths = _leaves(config)
    mistakes, refused = [], []
    for part in _split(arg):
        key, equals, text = part.strip().partition("=")
        matches = _matches(key, paths)
        try:
            if not equals or len(matches) != 1:
                raise ValueError(_bad_key(part.strip(), key, equals, matches, paths))
            config.update_from_flattened_dict({matches[0]: _value(matches[0], text, paths[matches[0]])})
        except ValueError as error:
            mistakes.append(str(error))
            refused.append(part)
    if mistakes:
        raise ArgumentError(mistakes, refused)
    return config


def _matches(key: str, paths: dict[str, Any]) -> list[str]:
    """The paths that `key` may mean: itself, else those that end so, of which one of `data` comes before all others."""
    ends = [key] if key in paths else [path for path in paths if path.endswith("." + key)]
    return [f"data.{key}"] if f"data.{key}" in ends else ends


def _leaves(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        leaves |= _leaves(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else {prefix + key: value}
    return leaves


def _split(arg: str) -> list[str]:
    """Split at the commas that stand outside parentheses."""
    return [part for part in re.split(r",(?![^(]*\))", arg) if part.strip()]


def _bad_key(part: str, key: str, equals: str, matches: list[str], paths: dict[str, Any]) -> str:
    if not equals:
        return f"found {part!r}, expected key=value"
    if matches:
        return f"{key}: is the end of several keys, expected one of {', '.join(matches)}"
    short = {path.rpartition(".")[2]: path for path in reversed(paths)} | {path: path for path in paths}
    near = difflib.get_close_matches(key, short, n=1, cutoff=0.65)
    return f"{key}: unknown key" + (f"; nearest: {short[near[0]]}" if near else "")


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
