"""From an evaluation's config to a protocol and what it is given. The part of `build` that `eval.py` and `ablate` share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sere_jax import build
from sere_jax import config as rules
from sere_jax.backbone import load_backbone
from sere_jax.data.views import ViewRecipe
from sere_jax.evals import classification, relations, retrieval
from sere_jax.evals.figures import protocol as figures
from sere_jax.evals.network import EvalError, Network

# The function behind a protocol's name; each writes WORKDIR/eval/NAME.json, but for the figures.
PROTOCOLS: dict[str, Callable[..., None]] = {
    "knn": classification.run,
    "retrieval": retrieval.run,
    "relations": relations.run,
    "figures": figures.run,
}


def load(path: str, *, network: str = "", heads: int = 0) -> Network:
    """A checkpoint as protocols want it; `network` and `heads` as `load_backbone` takes them."""
    found = load_backbone(path, network=network, heads=heads)
    about = {"checkpoint": path, **{key: found.about.get(key) for key in ("network", "step", "config")}}
    prepare = found.preprocess
    place = Path(path).resolve()
    name = place.parent.name if place.name == "checkpoints" else place.stem
    sizes = (prepare.size, prepare.resize, found.module.patch_size, prepare.mean, prepare.std)
    return Network(name, found.apply, found.params, *sizes, init=found.init, about=about, value_range=prepare.value_range)


def distinct(networks: Sequence[Network]) -> list[Network]:
    """Names that tell the rows apart; the config goes, a report needs only where a network came from."""
    names = [network.name for network in networks]
    shown = []
    for number, network in enumerate(networks, 1):
        name = network.name if names.count(network.name) == 1 else f"{network.name} [{number}]"
        shown.append(network._replace(name=name, about={key: value for key, value in network.about.items() if key != "config"}))
    return shown


def settings(config: ConfigDict, networks: Sequence[Network]) -> dict[str, Any]:
    """The keyword arguments of the protocol: the config's keys, with views and photometry as objects."""
    found = {key: value for key, value in config.items() if key not in ("protocol", "views_of", "views", "photometry")}
    if "views" in config:
        own = networks[0].about.get("config") if networks else None
        training = ConfigDict(rules.from_json_tree(own)) if own and config.views_of == "checkpoint" else config
        # Pairs of square crops are looked at, whatever the method learned from.
        pairs = dataclasses.replace(ViewRecipe(**training.views), global_count=2, global_width=0)
        found |= {"views": pairs, "photometry": build.photometry(training)}
    return found


def run(config: ConfigDict, networks: Sequence[Network], workdir: Path) -> None:
    """Run the config's protocol on the networks; results go below `workdir`."""
    for network in networks:
        if len(network.mean) != 3 and config.protocol != "knn":
            found = f"{network.name}: found a network of {len(network.mean)} channels"
            raise EvalError(f"{found}, expected 3 for {config.protocol}; knn and sere_jax.extract take any number")
    PROTOCOLS[config.protocol](distinct(networks), workdir, **settings(config, networks))
