"""What an evaluation is to `eval.py` and to ablations: one value that names all of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sere_jax.buckets import Location
from sere_jax.config.rule import Rule
from sere_jax.evals.network import Network
from sere_jax.types import PyTree

# Parameters of the backbone that is trained, a ResNet's running statistics among them -> (score, value)
Evaluation = Callable[[PyTree], Iterable[tuple[str, float]]]


def numbers(report: Mapping[str, Any]) -> dict[str, float]:
    """Every number in the results of a report, by the path of its keys.

    >>> numbers({"protocol": "probe", "results": [{"name": "run", "top1": 0.5, "loss": {"train": 1, "test": 2.0}}]})
    {'probe top1': 0.5, 'probe loss train': 1.0, 'probe loss test': 2.0}
    """
    return {f"{report['protocol']} {path}": value for result in report.get("results", []) for path, value in _leaves(result).items()}


def _leaves(tree: Any, prefix: str = "") -> dict[str, float]:
    if isinstance(tree, Mapping):
        return {path: value for key, inner in tree.items() for path, value in _leaves(inner, f"{prefix}{key} ").items()}
    return {prefix.strip(): float(tree)} if isinstance(tree, int | float) and not isinstance(tree, bool) else {}


def independent(values: Mapping[str, Any], wrong: Collection[str], processes: int) -> list[str]:
    """The `among` of a protocol whose keys do not constrain each other."""
    return []


class Protocol(NamedTuple):
    """An evaluation. Its module makes this value, its config is `configs/eval/NAME.py`, and `protocols.PROTOCOLS` lists it."""

    name: str
    rules: Mapping[str, Rule]  # of each key of its config but `protocol`
    settings: type  # a NamedTuple with the keys of the config; see `commands.evaluate.settings` for views and reading
    run: Callable[[Sequence[Network], Location, Any], None]  # networks, workdir, settings; writes WORKDIR/eval/NAME.json
    columns: Callable[[Mapping[str, Any]], dict[str, float]] = numbers  # of the report of one network: what an ablation's row shows
    # Mistakes of right values among each other: values, keys that are wrong by their own rule, number of processes.
    among: Callable[[Mapping[str, Any], Collection[str], int], list[str]] = independent
    # What runs in the training loop, from the network without parameters and the settings; None: the protocol runs by itself only.
    periodic: Callable[[Network, Any], Evaluation] | None = None
