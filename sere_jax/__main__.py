"""One front door: python -m sere_jax COMMAND [options]; installed, `sere-jax COMMAND [options]`."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

from sere_jax.reporting import program
from sere_jax.writing import WriteError

# command -> (module of sere_jax.commands, what it does in one line). Modules are imported when they run.
COMMANDS = {
    "export": ("export_command", "write a checkpoint's weights for PyTorch: timm, DINO, SERE, MoCo v3 or Hugging Face names"),
    "extract": ("extract_command", "write features of images to files: NumPy or Parquet"),
    "ablate": ("ablate", "run the rows of one of the papers' ablation tables on any images"),
    "prepare": ("prepare", "turn a data set into ArrayRecord shards that TFDS reads"),
    "check": ("data_check", "read and decode every image of a source once, and list what fails"),
    "aot": ("aot", "compile a config's step for a TPU slice or fake devices: memory, collectives, what bounds it"),
    "bench": ("data_bench", "measure what reading, decoding and cropping cost, stage by stage"),
    "report": ("report", "write one HTML page of runs: settings, curves, evaluations, figures"),
    "runs": ("runs", "list the runs below a directory: recipe, step, newest scores, state"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name, and return its exit code.

    0 is success, 2 is a mistake in the command line, and 130 is Ctrl-C.

    Example:
      >>> main(["--help"]) == 0  # doctest: +ELLIPSIS
      usage: python -m sere_jax COMMAND [options]
      ...
      True
    """
    program.set_up_output()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    name, *options = arguments
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"; nearest: {near[0]}" if near else ""
        print(f"found command {name!r}, expected one of {', '.join(COMMANDS)}{hint}", file=sys.stderr)
        return 2
    try:
        module = importlib.import_module(f"sere_jax.commands.{COMMANDS[name][0]}")
        return module.main(options)
    except WriteError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130


def usage() -> str:
    """The help text: each command with a line, and where training and evaluation are started."""
    lines = [f"  {name:<10}{meaning}" for name, (_, meaning) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: python -m sere_jax COMMAND [options]",
            "",
            *lines,
            "",
            "`python -m sere_jax COMMAND --help` lists a command's options.",
            "Pre-training is started by train.py, evaluations by eval.py.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
