"""Reading the command line of `train.py` and `eval.py` so that every mistake is told at once.

absl and `config_flags` stop at the first unknown flag or key. Here the command line is looked through beforehand: what
they would refuse is taken out and becomes a line, and they parse the rest.
"""

from __future__ import annotations

import difflib
import glob
import importlib.util
import os
from collections.abc import Iterator, Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags, tuple_parser

from sere_jax.config.names import flatten, unknown_key

_PARSERS = {
    bool: (flags.BooleanParser(), "true or false"),
    int: (flags.IntegerParser(), "a whole number"),
    float: (flags.FloatParser(), "a number"),
    tuple: (tuple_parser.TupleParser(), "a tuple"),
}

# config_flags looks for its overrides in a command line of its own; `parse` puts the tokens here that can be parsed.
_ARGV: list[str] = []


def define_config(flag_values: flags.FlagValues = flags.FLAGS) -> flags.FlagHolder:
    """The flag `--config=FILE.py[:ARGUMENT]` with its overrides `--config.key=value`, for `parse`."""
    return config_flags.DEFINE_config_file(
        "config", None, "The experiment, FILE.py[:key=value,...]; --config.key=value changes one key.", flag_values, sys_argv=_ARGV
    )


def parse(argv: Sequence[str], required: Sequence[str] = ("config", "workdir"), flag_values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Parse all of `argv` that can be parsed into `flag_values` and return the mistakes in the rest, one line each.

    A parser for `absl.app.run(main, flags_parser=parse)`: `main` then receives the mistakes. Mistakes are: unknown flags,
    unknown keys and values of another type in `--config.key=value`, positional arguments, missing `required` flags, a
    config file that is not there or refuses its argument.
    """
    kept, mistakes = preflight(argv, required, flag_values)
    _ARGV[:] = kept
    app.parse_flags_with_usage(kept) if flag_values is flags.FLAGS else flag_values(kept)
    return mistakes


def quiet(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Only warnings from the libraries' logs, unless `--verbosity` asks for more: absl's programs begin at INFO."""
    if not flag_values["verbosity"].present:
        logging.set_verbosity(logging.WARNING)


def preflight(argv: Sequence[str], required: Sequence[str], flag_values: flags.FlagValues) -> tuple[list[str], list[str]]:
    """Split `argv` into what can be parsed and the lines of the mistakes. `flag_values` must hold all other flags."""
    tokens = flag_values.read_flags_from_files(list(argv[1:]), force_gnu=False)
    spec = next((text for name, text, _ in _pairs(tokens, None, flag_values) if name == "config"), None)
    config, good, mistakes = _load(spec)
    kept, seen, asks_for_help = [], set(), False
    for name, text, used in _pairs(tokens, config, flag_values):
        mistake = _mistake(name, text, used, config, flag_values)
        seen.add(name)
        asks_for_help |= name.startswith("help") or name == "?"
        if mistake is not None:
            mistakes.append(mistake)
        elif name == "config":
            kept += [f"--config={good}"] if config is not None else []
        elif config is not None or not _is_config(name):
            kept += used
    if not asks_for_help:
        mistakes += [f"--{name}: missing, expected --{name}={_EXAMPLES.get(name, name.upper())}" for name in required if name not in seen]
    # The config's file comes first: config_flags wants it before any of its overrides.
    kept.sort(key=lambda token: not token.lstrip("-").startswith("config="))
    return [argv[0], *kept], mistakes


_EXAMPLES = {"config": "configs/NAME.py[:key=value,...]", "workdir": "DIR", "checkpoint": "DIR"}


def _is_config(name: str) -> bool:
    return name == "config" or name.startswith(("config.", "noconfig."))


def _pairs(tokens: Sequence[str], config: ConfigDict | None, flag_values: flags.FlagValues) -> Iterator[tuple[str, str | None, list[str]]]:
    """(flag's name or "" for a positional argument, its text or None, the same as `--name=text` tokens)."""
    rest = list(tokens)
    while rest:
        token = rest.pop(0)
        name, equals, text = token.lstrip("-").partition("=")
        if token == "--" or not token.startswith("-") or not name:
            yield "", token, [token]
        elif equals:
            yield name, text, [f"--{name}={text}"]
        elif _stands_alone(name, config, flag_values) or not rest or rest[0].startswith("--"):
            yield name, None, [f"--{name}"]
        else:
            value = rest.pop(0)
            yield name, value, [f"--{name}={value}"]


def _stands_alone(name: str, config: ConfigDict | None, flag_values: flags.FlagValues) -> bool:
    """Whether the flag takes no value: booleans, and flags nobody knows."""
    if _is_config(name) and name != "config":
        return name.startswith("no") or (config is not None and isinstance(flatten(config).get(name.partition(".")[2]), bool))
    return name not in flag_values or bool(flag_values[name].boolean)


def _load(spec: str | None) -> tuple[ConfigDict | None, str, list[str]]:
    """The config of `FILE[:ARGUMENT]` or None, the text that makes it, and what is wrong.

    Where parts of the argument are refused, the config is that of the others, so that mistakes in these are found too.
    """
    if spec is None:
        return None, "", []
    path, colon, argument = spec.partition(":")
    if not os.path.isfile(path):
        near = difflib.get_close_matches(path, glob.glob(os.path.join(os.path.dirname(path) or "configs", "*.py")), n=1)
        return None, "", [f"--config: found {path!r}, expected a file that exists" + (f"; nearest: {near[0]}" if near else "")]
    module_spec = importlib.util.spec_from_file_location("command_line_config", path)
    if module_spec is None or module_spec.loader is None:
        return None, "", [f"--config: found {path!r}, expected a Python file"]
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    try:
        return module.get_config(*([argument] if colon else [])), spec, []
    except ValueError as error:
        mistakes = [f"--config={spec}: {line.strip()}" for line in str(error).splitlines() if not line.endswith(":")]
        refused = getattr(error, "refused", [])  # of configs.common_arguments.ArgumentError
    if not refused:
        return None, "", mistakes
    good = _without(argument, refused)
    try:
        return module.get_config(good), f"{path}:{good}", mistakes
    except ValueError:
        return None, "", mistakes


def _without(argument: str, refused: Sequence[str]) -> str:
    """The argument less the parts that are refused, each as it stands between commas."""
    between = f",{argument},"
    for part in refused:
        between = between.replace(f",{part},", ",", 1)
    return between.strip(",")


def _mistake(name: str, text: str | None, used: list[str], config: ConfigDict | None, flag_values: flags.FlagValues) -> str | None:
    if not name:
        return _positional(str(text), config)
    if _is_config(name) and name != "config":
        return None if config is None else override_mistake(config, name, text)
    plain = name.removeprefix("no") if name not in flag_values else name
    if plain not in flag_values or (plain != name and not flag_values[plain].boolean):
        near = difflib.get_close_matches(name, list(flag_values), n=1)
        return f"--{name}: unknown flag" + (f"; nearest: --{near[0]}" if near else "")
    flag = flag_values[plain]
    if text is None or name == "config":
        return None if text is not None or flag.boolean else f"--{name}: found no value, expected --{name}=VALUE"
    try:
        flag.parser.parse(text)
    except (ValueError, TypeError) as error:
        return f"--{name}: found {text!r}, {error}"
    return None


def _positional(token: str, config: ConfigDict | None) -> str:
    key, equals, _ = token.partition("=")
    key = key.removeprefix("config.")
    meant = f"; nearest: --config.{token.removeprefix('config.')}" if equals and config is not None and key in flatten(config) else ""
    return f"{token}: found a positional argument, expected only --name=value{meant}"


def override_mistake(config: ConfigDict, name: str, text: str | None) -> str | None:
    """What is wrong with the flag `name` = `config.key` or `noconfig.key` and its text, by the type of the key's default."""
    key, known = name.partition(".")[2], flatten(config)
    if key not in known:
        inside = [path for path in known if path.startswith(key + ".")]
        if inside:
            return f"{key}: found a value for a group of keys, expected one of {', '.join(inside)}"
        return f"{key}: {unknown_key(key, known)}"
    default = known[key]
    if name.startswith("no"):
        return None if isinstance(default, bool) and text is None else f"{key}: found --{name}, expected --config.{key}=VALUE"
    if text is None:
        return None if isinstance(default, bool) else f"{key}: found no value, expected --config.{key}=VALUE"
    if type(default) not in _PARSERS:
        return None
    parser, expected = _PARSERS[type(default)]
    try:
        value: Any = parser.parse(text)
    except (ValueError, TypeError):
        return f"{key}: found {text!r}, expected {expected}, as in {default!r}"
    if isinstance(default, tuple) and default and not all(_alike(one, default[0]) for one in value):
        return f"{key}: found {text!r}, expected values as in {default!r}"
    return None


def _alike(value: Any, default: Any) -> bool:
    return type(value) is type(default) or (isinstance(default, float) and type(value) is int)
