"""The real train.py on two processes, signalled at random moments from start to end: it stops within a step plus the save, and resumes.

Most of a short run's time goes into imports and compilation. So half of the moments are drawn from all seconds of a run, and the other
half from its steps: the signal is sent as soon as the drawn step is logged.

Steps of this micro run take milliseconds, and JAX looks for a signal once a second before the processes agree on a step. So the bound
is in seconds: from the moment at which the process says that it caught the signal to the last step, by the times in metrics.jsonl. Where
a save of that moment makes it longer, it is in steps.

Each test prints a row: seed, signal, processes it went to, second, step logged when it was caught, step saved, seconds from there to the
last step, seconds until both ended.
`pytest -m slow -s tests/train/test_signals_slow.py` shows them.
"""

from __future__ import annotations

import datetime
import json
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.commands.test_pretrain import DRIVER, ROOT, environment
from tests.processes import free_port

STEPS = 120
SETTINGS = DRIVER | {"data.batch_size": 4, "schedule.total_steps": STEPS, "run.checkpoint_every_steps": 10}
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# Seconds from the signal to the last step: one until JAX looks, the rest for the agreement and the step on a busy machine.
LATEST = 3.0
MORE_STEPS = 4  # the one under way, the one that is agreed on, and one in the log's queue


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Compiled steps are shared by the starts of this file, as they are where a run is requeued."""
    place = tmp_path_factory.mktemp("compiled")
    return {"JAX_COMPILATION_CACHE_DIR": str(place), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


@pytest.fixture(scope="module")
def duration(tmp_path_factory: pytest.TempPathFactory, cache: dict[str, str]) -> float:
    """Seconds of a whole run, with everything compiled."""
    work = tmp_path_factory.mktemp("whole")
    for name in ("first", "second"):
        began = time.monotonic()
        assert _codes(_start(work / name, cache)) == [0, 0]
    return time.monotonic() - began


def _start(workdir: Path, cache: dict[str, str]) -> list[subprocess.Popen]:
    port = free_port()
    processes = []
    for rank in range(2):
        command = [sys.executable, "train.py", "--config=configs/quickstart.py", f"--workdir={workdir}"]
        command += [f"--config.{key}={value}" for key, value in SETTINGS.items()]
        command += [f"--coordinator=127.0.0.1:{port}", "--num_processes=2", f"--process_id={rank}"]
        log = open(workdir.with_name(f"{workdir.name}.{rank}.log"), "a")  # noqa: SIM115  # the process keeps it
        processes.append(subprocess.Popen(command, cwd=ROOT, env=environment(**cache), stdout=log, stderr=log))
    return processes


def _codes(processes: list[subprocess.Popen]) -> list[int]:
    return [process.wait(timeout=300) for process in processes]


def _logged(workdir: Path) -> list[int]:
    path = workdir / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line)["step"] for line in text[: text.rfind("\n") + 1].splitlines()]  # a line may be half written


def _saved(workdir: Path) -> int:
    directory = workdir / "checkpoints"
    return max((int(path.name) for path in directory.iterdir() if path.name.isdigit()), default=0) if directory.exists() else 0


def _around(workdir: Path, logs: str) -> tuple[int, float]:
    """The last step logged before the first process caught the signal, and the seconds from there to the last step; 0 where none did."""
    times = re.findall(r"SIGTERM caught at ([-\dT:]+\.\d{6})", logs)
    path = workdir / "metrics.jsonl"
    if not times or not path.exists():
        return 0, 0.0
    caught = min(datetime.datetime.fromisoformat(f"{text}+00:00").timestamp() for text in times)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    if not rows:  # stopped before the first step was logged
        return 0, 0.0
    return max((row["step"] for row in rows if row["time"] <= caught), default=0), max(0.0, rows[-1]["time"] - caught)


def _wait_for(step: int, workdir: Path, processes: list[subprocess.Popen]) -> None:
    while max(_logged(workdir), default=0) < step and all(process.poll() is None for process in processes):
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_a_signal_at_any_moment(tmp_path: Path, cache: dict[str, str], request: pytest.FixtureRequest, seed: int):
    rng, among_the_steps = random.Random(seed), seed % 2 == 0
    number, targets = rng.choice(SIGNALS), rng.choice([(0,), (1,), (0, 1)])
    workdir = tmp_path / "run"
    seconds = 0.0 if among_the_steps else rng.uniform(0, request.getfixturevalue("duration"))
    processes, began = _start(workdir, cache), time.monotonic()
    time.sleep(seconds)
    if among_the_steps:
        _wait_for(rng.randrange(1, STEPS), workdir, processes)
    already, sent = max(_logged(workdir), default=0), time.monotonic()
    at = sent - began
    for rank in targets:
        if processes[rank].poll() is None:
            processes[rank].send_signal(number)
    codes = _codes(processes)
    ended, saved = time.monotonic() - sent, _saved(workdir)
    logs = "\n".join(path.read_text()[-2000:] for path in sorted(tmp_path.glob("*.log")))
    caught, late = _around(workdir, "\n".join(path.read_text() for path in tmp_path.glob("*.log")))
    logged = max(already, caught)
    print(
        f"\n{seed:>4}  {number.name:<8} to {targets!s:<7} at {at:5.1f} s  logged {logged:>3}  saved {saved:>3}  "
        f"last step after {late:4.2f} s  ended after {ended:5.1f} s"
    )
    assert codes == [0, 0], logs
    assert logged or not among_the_steps, logs
    assert late <= LATEST or saved <= logged + MORE_STEPS, logs
    assert saved >= logged, logs  # nothing that was done is lost
    assert _codes(_start(workdir, cache)) == [0, 0], logs
    assert _saved(workdir) == STEPS and _logged(workdir) == list(range(1, STEPS + 1))
