"""Two real processes of one program on this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def outputs_of_two(script: str, *arguments: object, flags: str = "") -> list[str]:
    """Run `script PORT RANK *arguments` as ranks 0 and 1 on CPUs with these XLA flags; what each printed, errors included."""
    port, environ = free_port(), os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(port), str(rank), *map(str, arguments)],
            env=environ,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    return [process.communicate(timeout=120)[0] for process in processes]
