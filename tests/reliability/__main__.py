"""Campaigns of failures, seeded: python -m tests.reliability [--only=kills,weights --kills=9] prints the table of docs/reliability.md.

Every campaign takes its number of trials from a flag. The defaults take hours on two cores; `--scale=0.05` cuts all of them.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.reliability import checkpoints, disks, elastic, ends, files
from tests.reliability.outcome import Row, Trials, table

Campaign = Callable[[Trials, random.Random, Path], Row]
CAMPAIGNS: dict[str, tuple[int, Campaign]] = {
    "kills": (100, ends.killed),
    "kills_of_two": (40, lambda trials, rng, work: ends.killed(trials, rng, work, processes=2)),
    "signals": (60, ends.signalled),
    "signals_of_two": (60, lambda trials, rng, work: ends.signalled(trials, rng, work, processes=2)),
    "elastic": (len(elastic.PAIRS), elastic.elastic),
    "damaged": (1000, checkpoints.damaged_checkpoints),
    "disks": (24, disks.failing_disks),
    "weights": (200, files.hostile_weights),
    "images": (100_000, files.fuzzed_images),
    "lost": (60, files.lost_values),
    "soak": (50, ends.soak),
}


def main(arguments: list[str] | None = None) -> int:
    """Run the campaigns and print the table; 1 where a trial failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default=",".join(CAMPAIGNS), help="campaigns to run, separated by commas (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of all random choices")
    parser.add_argument("--scale", type=float, default=1.0, help="factor of all numbers of trials")
    parser.add_argument("--minutes", type=float, default=math.inf, help="after which a campaign begins no more trials (default: no limit)")
    for name, (count, _) in CAMPAIGNS.items():
        parser.add_argument(f"--{name}", type=int, default=count, help=f"trials (default: {count})")
    flags = parser.parse_args(arguments)
    rows = []
    for name in flags.only.split(","):
        count, began = max(1, round(getattr(flags, name) * flags.scale)), time.monotonic()
        with tempfile.TemporaryDirectory() as work:
            trials = Trials(name, count, flags.minutes)
            rows.append(CAMPAIGNS[name][1](trials, random.Random(f"{flags.seed} {name}"), Path(work)))
        print(f"{name}: {rows[-1].trials:,} trials in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    print(table(rows))
    return int(any(row.failures for row in rows))


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    sys.exit(main())
