"""The argument of a config file, `key=value` joined by commas, read into its config; `configs.common` says how it is written."""

from __future__ import annotations

import ast
import difflib
import re
from typing import Any

from ml_collections import ConfigDict


def arguments(config: ConfigDict, arg: str) -> ConfigDict:
    """`config` with the `key=value,...` of a config file's argument set; `arg` empty changes nothing.

    Values are read by the type of the default: `true`/`false`, numbers, text, and tuples as `(0.2,1.0)`.

    Raises ValueError that lists every mistake: a part without `=`, an unknown or ambiguous key, a value of another type.
    """
    paths = _leaves(config)
    mistakes = []
    for part in _split(arg):
        key, equals, text = part.partition("=")
        matches = [path for path in paths if path == key or path.endswith("." + key)]
        matches = [key] if key in matches else matches
        if not equals or len(matches) != 1:
            mistakes.append(_bad_key(part, key, equals, matches, paths))
            continue
        try:
            config.update_from_flattened_dict({matches[0]: _value(text, paths[matches[0]])})
        except ValueError as error:
            mistakes.append(f"{matches[0]}: {error}")
    if mistakes:
        raise ValueError("mistakes in the config's argument:\n" + "\n".join("  " + line for line in mistakes))
    return config


def _leaves(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        leaves |= _leaves(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else {prefix + key: value}
    return leaves


def _split(arg: str) -> list[str]:
    """Split at the commas that stand outside parentheses."""
    return [part.strip() for part in re.split(r",(?![^(]*\))", arg) if part.strip()]


def _bad_key(part: str, key: str, equals: str, matches: list[str], paths: dict[str, Any]) -> str:
    if not equals:
        return f"found {part!r}, expected key=value"
    if matches:
        return f"{key}: is the end of several keys, expected one of {', '.join(matches)}"
    short = {path.rpartition(".")[2]: path for path in paths} | {path: path for path in paths}
    near = difflib.get_close_matches(key, short, n=1, cutoff=0.5)
    return f"{key}: unknown key" + (f"; nearest: {short[near[0]]}" if near else "")


def _value(text: str, default: Any) -> Any:
    if isinstance(default, str):
        return text
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise ValueError(f"found {text!r}, expected true or false")
        return text.lower() == "true"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = None
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    if type(value) is not type(default):
        raise ValueError(f"found {text!r}, expected {type(default).__name__}, as in {default!r}")
    return value
