"""Evaluate networks: python eval.py --config=configs/eval/PROTOCOL.py[:key=value,...] --checkpoint=A[,B...] --workdir=DIR

A checkpoint is a run's workdir, its checkpoints directory, or an exported file. Tables go to the screen and to
DIR/eval/*.json, figures to DIR/figures. Exit code 2: mistakes, all of which are listed and nothing was started.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import app, flags, logging

from sere_jax import command_line

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from sere_jax.evals.network import Network

_CONFIG = command_line.define_config()
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory for the results.")
_CHECKPOINT = flags.DEFINE_list("checkpoint", [], "Workdirs or files (docs/weights.md), separated by commas; each is a row or column.")
_NETWORK = flags.DEFINE_enum("network", "", ["", "teacher", "student"], "Which network of a checkpoint; '': the one its recipe evaluates.")
_HEADS = flags.DEFINE_integer("heads", 0, "Attention heads, for files that do not say it.", lower_bound=0)
_COORDINATOR = flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, where several processes are not found by themselves.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", 0, "Processes of the run; with --coordinator.", lower_bound=0)
_PROCESS_ID = flags.DEFINE_integer("process_id", -1, "Which of them this is, from 0; with --coordinator.", lower_bound=-1)

_NEED_NO_CHECKPOINT = ("figures",)


def main(mistakes: list[str]) -> int:
    """Run the config's protocol, after all mistakes of the command line and of the config were found; the exit code."""
    from sere_jax import checkpoint, config_eval, sharding
    from sere_jax import config as rules
    from sere_jax.data.sources import SourceError
    from sere_jax.evals.network import EvalError
    from sere_jax.interop.files import FileError
    from sere_jax.interop.tables import InteropError

    logging.set_verbosity(logging.WARNING)  # Orbax tells every file it opens
    command_line.quiet()
    config = _CONFIG.value
    try:
        sharding.start_distributed(coordinator=_COORDINATOR.value, num_processes=_NUM_PROCESSES.value, process_id=_PROCESS_ID.value)
    except sharding.DistributedError as error:
        mistakes.append(str(error))
    if config is not None:
        mistakes += config_eval.mistakes(config)
        if not _CHECKPOINT.value and config.get("protocol") not in _NEED_NO_CHECKPOINT:
            mistakes.append("--checkpoint: missing, expected --checkpoint=DIR or an exported file")
    if mistakes:
        print(rules.ConfigError(mistakes), file=sys.stderr)
        return 2
    assert config is not None and _WORKDIR.value is not None  # both are required flags
    try:
        networks = [load(path) for path in _CHECKPOINT.value]
        protocol(config.protocol)(_distinct(networks), Path(_WORKDIR.value), **settings(config, networks))
    except (EvalError, SourceError, FileError, InteropError, checkpoint.CheckpointError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def load(path: str) -> Network:
    """A checkpoint as protocols want it."""
    from sere_jax import load_backbone
    from sere_jax.evals.network import Network

    found = load_backbone(path, network=_NETWORK.value, heads=_HEADS.value)
    for line in found.about.get("report", ()):  # of a file: what was recognised, taken and left
        print(f"{path}: {line}")
    about = {"checkpoint": path, **{key: found.about.get(key) for key in ("network", "step", "config")}}
    prepare = found.preprocess
    place = Path(path).resolve()
    name = place.parent.name if place.name == "checkpoints" else place.stem
    sizes = (prepare.size, prepare.resize, found.module.patch_size, prepare.mean, prepare.std)
    return Network(name, found.apply, found.params, *sizes, init=found.init, about=about)


def _distinct(networks: Sequence[Network]) -> list[Network]:
    """Names that tell the rows apart; the config goes, a report needs only where a network came from."""
    names = [network.name for network in networks]
    shown = []
    for number, network in enumerate(networks, 1):
        name = network.name if names.count(network.name) == 1 else f"{network.name} [{number}]"
        shown.append(network._replace(name=name, about={key: value for key, value in network.about.items() if key != "config"}))
    return shown


def protocol(name: str) -> Callable[..., None]:
    """The function behind a protocol's name."""
    from sere_jax.evals import classification, relations, retrieval
    from sere_jax.evals.figures import protocol as figures

    runs: dict[str, Callable[..., None]] = {
        "knn": classification.run,
        "retrieval": retrieval.run,
        "relations": relations.run,
        "figures": figures.run,
    }
    return runs[name]


def settings(config: ConfigDict, networks: Sequence[Network]) -> dict[str, Any]:
    """The keyword arguments of the protocol: the config's keys, with views and photometry as objects."""
    from ml_collections import ConfigDict

    from sere_jax import build
    from sere_jax import config as rules

    found = {key: value for key, value in config.items() if key not in ("protocol", "views_of", "views", "photometry")}
    if "views" in config:
        own = networks[0].about.get("config") if networks else None
        training = ConfigDict(rules.from_json_tree(own)) if own and config.views_of == "checkpoint" else config
        found |= {"views": build.view_recipe(training), "photometry": build.photometry(training)}
    return found


if __name__ == "__main__":
    app.run(main, flags_parser=command_line.parse)
