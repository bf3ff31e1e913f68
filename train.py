"""Pre-train a vision transformer: python train.py --config=configs/NAME.py[:key=value,...] --workdir=DIR [--config.key=value ...]

The same command resumes: the newest checkpoint of the workdir is picked up. Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 stop the run
after a step and save it (exit code 0, or --stopped_exit_code). Exit code 2: the command line, the config, the data or the
workdir cannot be used; all mistakes are listed and nothing was started. 1: the run ended because steps, images or the
disk were bad, or a bucket did not answer.
"""

from __future__ import annotations

from sere_jax.reporting import lossy
from sere_jax.train.signals import Interrupted, Signals

_SIGNALS = Signals(ends_process=True)
if __name__ == "__main__":
    lossy.hold_descriptors()  # before a pipe of the signals can get the number of a closed standard output
    _SIGNALS.__enter__()  # before the other imports, which take seconds: a signal that comes meanwhile counts

import functools
import sys

from absl import app, flags

from sere_jax.config import check as rules
from sere_jax.config import command_line
from sere_jax.config.launch import Launch
from sere_jax.reporting import program

_CONFIG = command_line.define_config()
flags.declare_key_flag("config")  # so that --help shows it
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run: checkpoints, logs, figures. Made where it does not exist.")
_COORDINATOR = flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, where several processes are not found by themselves.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", 0, "Processes of the run; with --coordinator.", lower_bound=0)
_PROCESS_ID = flags.DEFINE_integer("process_id", -1, "Which of them this is, from 0; with --coordinator.", lower_bound=-1)

_STOPPED_EXIT_CODE = flags.DEFINE_integer(
    "stopped_exit_code", 0, "Exit code after a signal stopped the run before its end, for schedulers that restart only what failed.", 0, 255
)


def main(mistakes: list[str]) -> int:
    """Train, after all mistakes of the command line and of the config were found; the exit code."""
    if program.is_single(_COORDINATOR.value, _NUM_PROCESSES.value) and (lines := _mistakes(mistakes, devices=0, processes=1)):
        print(rules.refusal(lines), file=sys.stderr)
        return 2
    program.announce(f"training in {_WORKDIR.value}: starting JAX", _PROCESS_ID.value)
    # Imported here: the data workers import this file too, and need none of it.
    import jax

    from sere_jax import distributed
    from sere_jax.commands import compiled, exit_codes, in_loop, pretrain
    from sere_jax.train import fit, maintenance, peers

    program.quiet()
    try:
        distributed.start_distributed(coordinator=_COORDINATOR.value, num_processes=_NUM_PROCESSES.value, process_id=_PROCESS_ID.value)
    except distributed.DistributedError as error:
        print(rules.refusal([*mistakes, str(error)]), file=sys.stderr)
        return 2
    peers.watch(_CONFIG.value.run.lost_after_seconds if _CONFIG.value is not None else 30)
    try:
        compiled.keep_compiled()
        _SIGNALS.join(jax.process_count(), interruptible=True)
        _check(mistakes, devices=jax.device_count(), processes=jax.process_count())
        if jax.default_backend() == "tpu":
            maintenance.watch()
        assert _WORKDIR.value is not None  # a required flag
        pretrain.train(_CONFIG.value, _WORKDIR.value, in_loop.evaluations, signals=_SIGNALS, launch=_launch())
    except Interrupted:
        sys.unraisablehook = lambda _: None  # reads of a checkpoint that the signal broke off, a page each, when they are collected
        return _stopped(f"stopped by {_SIGNALS.name} before the first step; the same command starts or goes on")
    except fit.Stopped as stopped:
        return _stopped(str(stopped))
    except exit_codes.EXPECTED as error:
        return peers.ended(error, exit_codes.of(error), only_first=isinstance(error, distributed.OtherProcessError))
    except Exception as error:
        return peers.broken(error)
    return 0


def _stopped(text: str) -> int:
    """Say on process 0 how a signal stopped the run; the exit code."""
    import jax

    if jax.process_index() == 0:
        print(text)
    return _STOPPED_EXIT_CODE.value


def _check(mistakes: list[str], *, devices: int, processes: int) -> None:
    """Raise the mistakes of the command line and the config, those of all processes, on process 0 alone."""
    from sere_jax import distributed

    lines = _mistakes(mistakes, devices=devices, processes=processes)
    with distributed.together():
        if lines:
            raise rules.refusal(lines)


@functools.cache
def _launch() -> Launch:
    """What the command line says of the config. Kept, because the config file is executed for it."""
    return command_line.launch(sys.argv, _CONFIG.value)


def _mistakes(mistakes: list[str], *, devices: int, processes: int) -> list[str]:
    """The mistakes of the command line, and those of the workdir and the config. Needs no JAX."""
    mistakes = [*mistakes, *rules.workdir_mistakes(_WORKDIR.value, rules.sources(_CONFIG.value) if _CONFIG.value is not None else None)]
    if _CONFIG.value is not None:
        mistakes += rules.mistakes(_CONFIG.value, devices=devices, processes=processes, to_fit=_launch().to_fit)
    return mistakes


if __name__ == "__main__":
    program.set_up_output()
    try:
        app.run(main, flags_parser=command_line.parse)
    finally:
        _SIGNALS.__exit__()  # a late signal no longer changes the exit code
