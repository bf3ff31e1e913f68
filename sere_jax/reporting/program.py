"""How a program speaks: its first line, the logs of libraries, and characters that its output cannot hold. Imports nothing slow."""

from __future__ import annotations

import io
import os
import sys
from logging import LogRecord, getLogger
from pathlib import Path

from absl import flags, logging

from sere_jax.reporting import lossy


def announce(text: str, process_id: int) -> None:
    """Print a line before the slow imports begin, unless this is known to be a process other than the first."""
    if process_id <= 0 and os.environ.get("SLURM_PROCID", "0") == "0":
        print(text, flush=True)


def is_single(coordinator: str, num_processes: int) -> bool:
    """Whether the flags and the environment show that a program is one process alone, before JAX is imported."""
    clusters = ("SLURM_STEP_NODELIST", "TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES", "MEGASCALE_NUM_SLICES", "OMPI_COMM_WORLD_SIZE")
    return not coordinator and num_processes <= 1 and not any(name in os.environ for name in clusters)


def quiet(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Show only warnings of the libraries' logs, unless `--verbosity` asks for more. absl's programs show INFO by default."""
    if not flag_values["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
        logging.get_absl_logger().addFilter(_is_not_from_orbax)


def _is_not_from_orbax(record: LogRecord) -> bool:
    """Orbax logs each of its errors several times with the whole stack, and raises it too. The raised error ends in one sentence."""
    return "orbax" not in Path(record.pathname).parts


def _is_no_lost_error(record: LogRecord) -> bool:
    return "exception was never retrieved" not in record.getMessage()


def set_up_output() -> None:
    """Prepare a program's standard output and error. Every program calls it once, before it prints.

    Output that cannot be written does not end the program.

    Characters that the encoding lacks are written as escapes, such as `\\xe9` and `\\udce9`. Names of files may hold any byte, and by
    default a `print` of such a name raises UnicodeEncodeError in most locales. Stacks of "Event loop is closed" are left out: after a
    failed save (a full disk) TensorStore's threads answer a loop that Orbax has closed, and Python reports each answer. So are errors
    of arrays that asyncio logs because nobody asked for them: one of them was raised.
    """
    lossy.hold_descriptors()
    getLogger("asyncio").addFilter(_is_no_lost_error)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not (stream.errors == "surrogateescape" and stream.encoding.lower() == "utf-8"):
            stream.reconfigure(errors="backslashreplace")
    lossy.replace_standard_streams()
    report = sys.unraisablehook

    def report_others(unraisable: sys.UnraisableHookArgs) -> None:
        if not (isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed"):
            report(unraisable)

    if getattr(report, "__module__", "") != __name__:
        sys.unraisablehook = report_others
