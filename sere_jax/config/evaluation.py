"""The rules of an evaluation's config, one table for each protocol; mistakes are told as in `sere_jax.config`."""

from __future__ import annotations

from collections.abc import Mapping

from ml_collections import ConfigDict

from sere_jax.config.check import check
from sere_jax.config.cross import batch_of_processes, resize_before_crop
from sere_jax.config.keys import RULES
from sere_jax.config.names import flatten, nearest
from sere_jax.config.rule import Rule

_TOKENS = Rule(str, choices=("cls", "patches", "cls+patches"), length=0)
_SIDE = Rule(int, low=0)
_SEED = RULES["seed"]
_BOOL = Rule(bool)
_SHARE = Rule(float, low=0.0, high=1.0)
_POSITIVE = Rule(float, low=0.0, above=True)

_VOTE: Mapping[str, Rule] = {
    "protocol": Rule(str),
    "tokens": _TOKENS,
    "neighbours": RULES["eval.neighbours"],
    "temperature": _POSITIVE,
    "size": _SIDE,
    "batch_size": Rule(int, low=1),
    "max_pixels": RULES["data.max_pixels"],
    "baselines": _BOOL,
    "seed": _SEED,
}

_VIEWS: Mapping[str, Rule] = {
    "protocol": Rule(str),
    "source": Rule(str),
    "views_of": Rule(str, choices=("checkpoint", "config")),
    "size": _SIDE,
    "points": Rule(int, low=2),
    "sampling": RULES["relation.sampling"],
    "backend": RULES["data.backend"],
    "random": _BOOL,
    "seed": _SEED,
    **{key: rule for key, rule in RULES.items() if key.startswith(("views.", "photometry."))},
}

PROTOCOLS: Mapping[str, Mapping[str, Rule]] = {
    "knn": {
        **_VOTE,
        "gallery": Rule(str),
        "query": Rule(str),
        "resize": _SIDE,
        "workers": Rule(int, low=0),
        "backend": RULES["data.backend"],
    },
    "retrieval": {
        **_VOTE,
        "source": Rule(str),
        "regions_per_photo": Rule(int, low=1),
        "region_scale": RULES["views.global_scale"],
        "jitter": _SHARE,
    },
    "relations": {
        **_VIEWS,
        "images": Rule(int, low=0),
        "tokens": Rule(str, choices=("pre", "post"), length=0),
        "spatial_temperatures": Rule(float, low=0.0, above=True, length=0),
        "channel_temperatures": Rule(float, low=0.0, above=True, length=0),
        "heads": Rule(int, low=1),
        "batch_size": Rule(int, low=2),
    },
    "figures": {
        **_VIEWS,
        "which": Rule(str, choices=("crops", "attention", "relations", "pca", "channels"), length=0),
        "images": Rule(int, low=0, length=0),
        "tokens": RULES["relation.tokens"],
        "temperature": _POSITIVE,
        "queries": Rule(float, low=0.0, high=1.0, length=0),
        "mass": _SHARE,
        "channel_count": Rule(int, low=1, high=26),
    },
}


def mistakes(config: ConfigDict, *, processes: int = 1) -> list[str]:
    """The lines of everything that is wrong with an evaluation's config, on so many processes."""
    protocol = config.get("protocol")
    if protocol not in PROTOCOLS:
        return [f"protocol: found {protocol!r}, expected one of {', '.join(PROTOCOLS)}{nearest(protocol, PROTOCOLS)}"]
    values = flatten(config)
    lines = check(values, PROTOCOLS[protocol])
    wrong = {line.partition(":")[0] for line in lines}
    if protocol == "knn" and not wrong & {"size", "resize"}:
        lines += resize_before_crop("", values["size"], values["resize"])
    if protocol == "knn" and "batch_size" not in wrong:  # the others are the work of one process, or of each
        lines += batch_of_processes("batch_size", values["batch_size"], processes)
    return lines
