"""Evaluate networks: python eval.py --config=configs/eval/PROTOCOL.py[:key=value,...] --checkpoint=A[,B...] --workdir=DIR

A checkpoint is a run's workdir, its checkpoints directory, or an exported file. Tables go to the screen and to
DIR/eval/*.json, figures to DIR/figures. Exit code 2: mistakes, all of which are listed and nothing was started (those of the
command line alone come first, before JAX is imported). 1: the evaluation ended because steps, images or the disk were bad, or a
bucket did not answer. 130: Ctrl-C. An evaluation that trains is stopped by Ctrl-C after a step (exit code 0), and the same command resumes.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from typing import TYPE_CHECKING


def _end(*_: object) -> None:
    """End at Ctrl-C while modules are imported: an exception there may be swallowed."""
    os.write(2, b"eval.py: interrupted\n")
    os._exit(128 + signal.SIGINT)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, _end)

from absl import app, flags, logging

from sere_jax.config import check as rules
from sere_jax.config import command_line
from sere_jax.config.names import WITHOUT_CHECKPOINT
from sere_jax.reporting import program
from sere_jax.weights import source

if TYPE_CHECKING:
    from ml_collections import ConfigDict

_CONFIG = command_line.define_config(directory="configs/eval", keys="docs/evaluation.md (of views and photometry: docs/config.md)")
flags.declare_key_flag("config")  # so that --help shows it
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory for the results.")
_CHECKPOINT = flags.DEFINE_list("checkpoint", [], "Workdirs or files (docs/weights.md), separated by commas; each is a row or column.")
_NETWORK = flags.DEFINE_enum("network", "", ["", "teacher", "student"], "Which network of a checkpoint; '': the one its recipe evaluates.")
_HEADS = flags.DEFINE_integer("heads", 0, "Attention heads, for files that do not say it.", lower_bound=0)
_IGNORE = flags.DEFINE_list("ignore", [], "Patterns of tensors of a file to leave out, separated by commas (docs/weights.md).")
_COORDINATOR = flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, where several processes are not found by themselves.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", 0, "Processes of the run; with --coordinator.", lower_bound=0)
_PROCESS_ID = flags.DEFINE_integer("process_id", -1, "Which of them this is, from 0; with --coordinator.", lower_bound=-1)


def main(mistakes: list[str]) -> int:
    """Run the config's protocol, after all mistakes of the command line and of the config were found; the exit code."""
    config = _CONFIG.value
    mistakes += rules.workdir_mistakes(_WORKDIR.value, rules.sources(config) if config is not None else None)
    if config is not None and not _CHECKPOINT.value and config.get("protocol") not in WITHOUT_CHECKPOINT:
        mistakes.append("--checkpoint: missing, expected --checkpoint=DIR or an exported file")
    mistakes += [f"--checkpoint: {sentence}" for path in _CHECKPOINT.value for sentence in source.mistakes(path)]
    if mistakes and program.is_single(_COORDINATOR.value, _NUM_PROCESSES.value):
        print(rules.refusal(mistakes), file=sys.stderr)
        return 2
    program.announce(f"evaluating {', '.join(_CHECKPOINT.value) or 'no checkpoint'}: starting JAX", _PROCESS_ID.value)
    import jax

    from sere_jax import distributed
    from sere_jax.commands import compiled
    from sere_jax.evals import protocols
    from sere_jax.train import peers

    signal.signal(signal.SIGINT, signal.default_int_handler)
    logging.set_verbosity(logging.WARNING)  # Orbax tells every file it opens
    program.quiet()
    try:
        distributed.start_distributed(coordinator=_COORDINATOR.value, num_processes=_NUM_PROCESSES.value, process_id=_PROCESS_ID.value)
    except distributed.DistributedError as error:
        print(rules.refusal([*mistakes, str(error)]), file=sys.stderr)
        return 2
    compiled.keep_compiled()
    if config is not None:
        mistakes += protocols.mistakes(config, processes=jax.process_count())
    if mistakes := distributed.gather_lines(mistakes):
        if jax.process_index() == 0:
            print(rules.refusal(mistakes), file=sys.stderr)
        return 2
    peers.watch()
    assert config is not None and _WORKDIR.value is not None  # both are required flags
    return _evaluate(config, _WORKDIR.value)


def _evaluate(config: ConfigDict, directory: str) -> int:
    """Load the networks and run the protocol; the exit code."""

    from sere_jax import distributed
    from sere_jax.commands import evaluate, exit_codes
    from sere_jax.reporting import table
    from sere_jax.train import fit, peers
    from sere_jax.writing import writing_to

    try:
        load = functools.partial(evaluate.load, network=_NETWORK.value, heads=_HEADS.value, ignore=_IGNORE.value)
        networks = []
        for path in _CHECKPOINT.value:
            table.say(f"reading {path}")
            networks.append(load(path))
        with writing_to(directory) as workdir:
            evaluate.run(config, networks, workdir, command_line.launch(sys.argv, config))
    except fit.Stopped as stopped:  # an evaluation that trains; the same command goes on
        table.say(str(stopped))
        return 0
    except exit_codes.EXPECTED as error:
        return peers.ended(error, exit_codes.of(error), only_first=isinstance(error, distributed.OtherProcessError))
    except Exception as error:
        return peers.broken(error)
    return 0


if __name__ == "__main__":
    program.set_up_output()
    try:
        app.run(main, flags_parser=command_line.parse)
    except KeyboardInterrupt:
        print("eval.py: interrupted", file=sys.stderr)
        sys.exit(130)
