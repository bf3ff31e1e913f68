"""docs/config.md, made from the table of keys: python -m sere_jax.config.document [FILE]

It writes FILE, by default docs/config.md below the current directory.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sere_jax.config.keys import GROUPS, MACHINE_KEYS, Group

_OPENING = """# Config keys

Every key of a pre-training config with its default. Each file of `configs/` changes those that make it its
experiment. A launch changes any of them, as an argument of the config file or as an override:

    python train.py --config=configs/dino_vits16.py:source=folder:PHOTOS,epochs=300 --workdir=RUN --config.optimizer.base_lr=1e-3

- An argument takes the last part of a key where one key ends with it; an override takes the full path.
- Tuples are written as `(0.2,1.0)`, truth values as `true` and `false`.
- A run that goes on from its checkpoint keeps every value, but for the keys that say "may change". `data.source` may name the same
  files at another path.
- `epochs` overrides a file's `total_steps`, and the reverse. Both in one launch, and a key given twice, are mistakes.
- Durations of the file that do not fit into a run that the launch made shorter keep their share of it, in whole epochs and at least
  one, and a line says so.
- A key that the run never reads and that differs from its default is a mistake: `relation.alpha` with `recipe=dino`. What a file sets
  goes back to its default where the launch switches off what reads it.
- All mistakes are listed at once, before anything is read or compiled.

This page is generated: `python -m sere_jax.config.document` writes it from `sere_jax/config/keys`, and a test checks that it is current."""


def text() -> str:
    """The page: a table for each group of keys."""
    return "\n".join([_OPENING, *map(_section, GROUPS)])


def _section(group: Group) -> str:
    lines = ["", f"## {group.name or 'At the top'}", "", *([group.about, ""] if group.about else [])]
    lines += ["| Key | Default | Allowed | Meaning | On resume | Since |", "|---|---|---|---|---|---|"]
    for name, key in group.keys.items():
        path = f"{group.name}.{name}" if group.name else name
        resume = "may change" if path in MACHINE_KEYS else ""
        lines.append(f"| `{path}` | `{_value(key.default)}` | {key.rule.expected()} | {key.meaning} | {resume} | {key.since} |")
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_value, value))})"
    return f"{value:g}" if isinstance(value, float) else repr(value)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page to the file that the arguments name."""
    parser = argparse.ArgumentParser(prog="python -m sere_jax.config.document", description="Write the page of the config's keys.")
    parser.add_argument("file", nargs="?", type=Path, default=Path("docs/config.md"), help="where the page goes; default: %(default)s")
    place = parser.parse_args(argv).file
    place.write_text(text(), encoding="utf-8")
    print(f"wrote {place}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
