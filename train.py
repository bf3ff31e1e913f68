"""Pre-train a vision transformer: python train.py --config=configs/NAME.py[:key=value,...] --workdir=DIR [--config.key=value ...]

The same command resumes: the newest checkpoint of the workdir is picked up. Exit code 2: the configuration has mistakes,
all of which are listed and nothing was started.
"""

from __future__ import annotations

import sys

from absl import app, flags

from sere_jax import command_line

_CONFIG = command_line.define_config()
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run: checkpoints, logs, figures. Made where it does not exist.")
_COORDINATOR = flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, where several processes are not found by themselves.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", 0, "Processes of the run; with --coordinator.", lower_bound=0)
_PROCESS_ID = flags.DEFINE_integer("process_id", -1, "Which of them this is, from 0; with --coordinator.", lower_bound=-1)


def main(mistakes: list[str]) -> int:
    """Train, after all mistakes of the command line and of the config were found; the exit code."""
    # Imported here: the data workers import this file too, and need none of it.
    import jax

    from sere_jax import config as rules
    from sere_jax import loop, sharding

    try:
        sharding.start_distributed(coordinator=_COORDINATOR.value, num_processes=_NUM_PROCESSES.value, process_id=_PROCESS_ID.value)
    except sharding.DistributedError as error:
        mistakes.append(str(error))
    if _CONFIG.value is not None:
        mistakes += rules.mistakes(_CONFIG.value, devices=jax.device_count(), processes=jax.process_count())
    if mistakes:
        print(rules.ConfigError(mistakes), file=sys.stderr)
        return 2
    return loop.train(_CONFIG.value, _WORKDIR.value) or 0


if __name__ == "__main__":
    app.run(main, flags_parser=command_line.parse)
