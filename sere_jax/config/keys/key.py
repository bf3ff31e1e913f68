"""One key of a config, and a group of them: the rows of the table of keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from sere_jax.config.rule import Rule

FIRST = "0.1"  # the first version whose checkpoints are read


class Key(NamedTuple):
    """One key: its default, the rule that its value must keep, and its meaning in one line, with the unit.

    `machine` keys only concern the machine and the running: a run that goes on may change them (`Group.machine`: all of a group).

    A key that is added later names the first version that has it (`since`), and the value that stands for what
    older versions did (`before`). Configs in older checkpoints are completed with that value.
    """

    default: Any
    rule: Rule
    meaning: str
    since: str = FIRST
    before: Any = None
    machine: bool = False


class Group(NamedTuple):
    """Keys that belong together. `name` is the group's name in the config, or '' for keys at the top."""

    name: str
    about: str
    keys: Mapping[str, Key]
    machine: bool = False
