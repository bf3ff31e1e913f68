"""The Python files that an ablation reads: the tables of rows, and the protocols that evaluate them."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence
from types import ModuleType

import jax
from ml_collections import ConfigDict

from sere_jax.config import check as rules
from sere_jax.config import command_line
from sere_jax.evals import protocols


class Refused(ValueError):
    """The command line cannot be carried out; the message names the flag."""


def read_module(flag: str, path: str, names: Sequence[str]) -> ModuleType:
    """A Python file that defines `names`, below the current directory or else below the checkout. Raises Refused for another file."""
    path = command_line.config_path(path)
    spec = importlib.util.spec_from_file_location("ablation_config", path)
    if spec is None or spec.loader is None or not os.path.isfile(path):
        raise Refused(f"{flag}: found {path!r}, expected a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(command_line.CHECKOUT))  # the files import configs.common
    try:
        spec.loader.exec_module(module)
    except (SyntaxError, ImportError) as error:
        raise Refused(f"{flag}: {path} cannot be imported: {error}") from error
    if missing := [name for name in names if not hasattr(module, name)]:
        raise Refused(f"{flag}: {path} does not define {', '.join(missing)}; expected a file that defines {', '.join(names)}")
    return module


def default_protocols(options: argparse.Namespace) -> list[str]:
    """k-NN with labelled images, retrieval without, and relation differences on the same views for all rows."""
    images = options.evaluate or options.data
    near = "configs/eval/retrieval.py:baselines=false,tokens=('cls','patches'),source=" + images
    if options.gallery or options.query:
        near = f"configs/eval/knn.py:tokens=('cls','patches'),gallery={options.gallery},query={options.query}"
    relations = (
        "configs/eval/relations.py:views_of=config,random=false,tokens=('post',),spatial_temperatures=(1.0,),channel_temperatures=(1.0,)"
    )
    return [near, f"{relations},source={images}"]


def read_protocol(spec: str) -> ConfigDict:
    """The config of `FILE[:ARGUMENT]`. Raises Refused for another file, ConfigError where the config has mistakes."""
    path, _, argument = spec.partition(":")
    module = read_module("--protocol", path, ("get_config",))
    try:
        config = module.get_config(argument)
    except (ValueError, TypeError) as error:  # TypeError: get_config takes no argument
        raise Refused(f"--protocol={spec}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise Refused(f"--protocol={spec}: get_config returned {type(config).__name__}, expected a ConfigDict")
    if mistakes := protocols.mistakes(config, processes=jax.process_count()):
        raise rules.ConfigError([f"--protocol={spec}: {line}" for line in mistakes])
    return config
