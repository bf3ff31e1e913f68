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
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags, tuple_parser

from sere_jax.config.arguments import matching, said_keys, split
from sere_jax.config.launch import EPOCHS, STEPS, Launch, adjustments, both_lengths, settle
from sere_jax.config.names import GUESSES, WORKDIR_GUESSES, flatten, unknown_key
from sere_jax.writing import place

_PARSERS = {
    bool: (flags.BooleanParser(), "true or false"),
    int: (flags.IntegerParser(), "a whole number"),
    float: (flags.FloatParser(), "a number"),
    tuple: (tuple_parser.TupleParser(), "a tuple"),
}

CHECKOUT = Path(__file__).resolve().parents[2]  # where configs/ lies


def config_path(path: str) -> str:
    """The file of a path: below the current directory, else below the checkout, so that programs run from anywhere."""
    if os.path.isfile(path):
        return path
    return next((str(file) for file in (place(path), CHECKOUT / path) if os.path.isfile(file)), path)


# config_flags looks for its overrides in a command line of its own; `parse` puts the tokens here that can be parsed.
_ARGV: list[str] = []


def define_config(
    flag_values: flags.FlagValues = flags.FLAGS, *, directory: str = "configs", keys: str = "docs/config.md"
) -> flags.FlagHolder:
    """The flag `--config=FILE.py[:ARGUMENT]` with its overrides `--config.key=value`, for `parse`.

    Its help lists the config files of `directory` and names the document that explains the keys.
    """
    listed = ", ".join(f"{directory}/{name}" for name in config_files(directory))
    meaning = f"FILE.py[:key=value,...]; --config.key=value changes one key. {keys} explains the keys. Files: {listed}"
    return config_flags.DEFINE_config_file("config", None, meaning, flag_values, sys_argv=_ARGV)


def config_files(directory: str) -> list[str]:
    """The names of the config files of a directory of the checkout, without those that only others import."""
    return sorted(path.name for path in (CHECKOUT / directory).glob("*.py") if not path.name.startswith(("common", "_")))


def parse(argv: Sequence[str], required: Sequence[str] = ("config", "workdir"), flag_values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Parse all of `argv` that can be parsed into `flag_values` and return the mistakes in the rest, one line each.

    A parser for `absl.app.run(main, flags_parser=parse)`: `main` then receives the mistakes. Mistakes are: unknown flags,
    unknown keys and values of another type in `--config.key=value`, positional arguments, missing `required` flags, a
    config file that is not there or refuses its argument.
    """
    parsable, mistakes = preflight(argv, required, flag_values)
    _ARGV[:] = parsable
    with adjustments() as lines:
        app.parse_flags_with_usage(parsable) if flag_values is flags.FLAGS else flag_values(parsable)
    config = flag_values["config"].value
    if config is not None:
        lines += _settle(config, parsable, lines)
        if not mistakes:
            print("".join(f"note: {line}\n" for line in lines), end="")
    return mistakes


def _settle(config: ConfigDict, tokens: Sequence[str], known: Sequence[str]) -> list[str]:
    """Change what follows from the overrides (`launch.settle`), and return the new lines."""
    spec = next(token.partition("=")[2] for token in tokens if token.startswith("--config="))
    with adjustments():
        before, _, _ = _load(spec)
    assert before is not None  # it was loaded before
    return [line for line in settle(config, flatten(before), said(tokens, config)) if line not in known]


def said(argv: Sequence[str], config: ConfigDict) -> set[str]:
    """The full paths of the keys that a command line gives, in the config file's argument and as overrides."""
    keys: set[str] = set()
    for token in argv:
        name = token.lstrip("-").partition("=")[0]
        if name == "config":
            keys |= set(said_keys(token.partition("=")[2].partition(":")[2], flatten(config)))
        elif name.startswith(("config.", "noconfig.")):
            keys.add(name.partition(".")[2])
    return keys


def launch(argv: Sequence[str], config: ConfigDict, flag_values: flags.FlagValues = flags.FLAGS) -> Launch:
    """The keys that a command line gives, its config file, and the length of the run without them. `config` is the result of `parse`."""
    arguments = flag_values.read_flags_from_files(list(argv[1:]), force_gnu=False)
    tokens = [token for _, _, used in _pairs(arguments, config, flag_values) for token in used]
    spec = next(token.partition("=")[2] for token in tokens if token.startswith("--config="))
    of_file, _, _ = _load(spec)
    result = Launch(frozenset(said(tokens, config)), file=spec, values=flatten(of_file) if of_file is not None else {})
    if not result.said & {EPOCHS, STEPS}:
        return result
    file, _, argument = spec.partition(":")
    paths = flatten(config)
    others = [part for part in split(argument) if matching(part.strip().partition("=")[0], paths) not in ([EPOCHS], [STEPS])]
    before, _, _ = _load(f"{file}:{','.join(others)}" if others else file)
    return result if before is None else result._replace(epochs=before.schedule.epochs, total_steps=before.schedule.total_steps)


def preflight(argv: Sequence[str], required: Sequence[str], flag_values: flags.FlagValues) -> tuple[list[str], list[str]]:
    """Split `argv` into what can be parsed and the lines of the mistakes. `flag_values` must hold all other flags."""
    tokens = flag_values.read_flags_from_files(list(argv[1:]), force_gnu=False)
    spec = next((text for name, text, _ in _pairs(tokens, None, flag_values) if name == "config"), None)
    config, good, mistakes = _load(spec)
    parsable, seen, asks_for_help = [], set(), False
    argument = said_keys(spec.partition(":")[2], flatten(config)) if spec and config is not None else []
    seen |= {f"config.{key}" for key in argument}
    for name, text, used in _pairs(tokens, config, flag_values):
        mistake = _mistake(name, text, used, config, flag_values)
        plain = name.removeprefix("no") if name.startswith("noconfig.") else name
        if mistake is None and plain in seen:
            mistake = (
                f"{plain.removeprefix('config.') if _is_config(name) and name != 'config' else '--' + plain}: found twice, expected once"
            )
        if mistake is None or not name.startswith(("config.", "noconfig.")):
            seen.add(plain)
        asks_for_help |= name.startswith("help") or name == "?"
        if mistake is not None:
            mistakes.append(mistake)
        elif name == "config":
            parsable += [f"--config={good}"] if config is not None else []
        elif config is not None or not _is_config(name):
            parsable += used
    if not {"schedule.epochs", "schedule.total_steps"} <= set(argument):  # else the argument was refused for it
        mistakes += both_lengths({name.removeprefix("config.") for name in seen})
    if not asks_for_help:
        mistakes += [f"--{name}: missing, expected --{name}={_EXAMPLES.get(name, name.upper())}" for name in required if name not in seen]
    # The config's file comes first: config_flags wants it before any of its overrides.
    parsable.sort(key=lambda token: not token.lstrip("-").startswith("config="))
    return [argv[0], *parsable], mistakes


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
    path = config_path(path)
    spec = f"{path}{colon}{argument}"
    if not os.path.isfile(path):
        near = difflib.get_close_matches(path, glob.glob(os.path.join(os.path.dirname(path) or "configs", "*.py")), n=1)
        return None, "", [f"--config: found {path!r}, expected a file that exists" + (f"; nearest: {near[0]}" if near else "")]
    module_spec = importlib.util.spec_from_file_location("command_line_config", path)
    if module_spec is None or module_spec.loader is None:
        return None, "", [f"--config: found {path!r}, expected a Python file"]
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    try:
        with adjustments():  # `parse` shows them when the flag itself is parsed
            return module.get_config(*([argument] if colon else [])), spec, []
    except ValueError as error:
        mistakes = [f"--config={spec}: {line.strip()}" for line in str(error).splitlines() if not line.endswith(":")]
        refused = getattr(error, "refused", [])  # of configs.common_arguments.ArgumentError
    if not refused:
        return None, "", mistakes
    good = _without(argument, refused)
    try:
        with adjustments():
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
        return f"--{name}: unknown flag{_nearest_flag(name, config, flag_values)}"
    flag = flag_values[plain]
    if text is None or name == "config":
        return None if text is not None or flag.boolean else f"--{name}: found no value, expected --{name}=VALUE"
    try:
        flag.parser.parse(text)
    except (ValueError, TypeError) as error:
        return f"--{name}: found {text!r}, {error}"
    return None


def _nearest_flag(name: str, config: ConfigDict | None, flag_values: flags.FlagValues) -> str:
    """`; nearest: --FLAG`: a key of the config, what other programs call so, else the flag that is written most alike."""
    last = {path.rpartition(".")[2]: path for path in reversed(flatten(config) if config is not None else {})}
    key = last.get(name) or (GUESSES.get(name) if GUESSES.get(name, "").rpartition(".")[2] in last else None)
    if name in WORKDIR_GUESSES and "workdir" in flag_values:
        return "; nearest: --workdir"
    if key:
        return f"; nearest: --config.{key}"
    near = difflib.get_close_matches(name, list(flag_values), n=1)
    return f"; nearest: --{near[0]}" if near else ""


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
