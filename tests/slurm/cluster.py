"""A real Slurm on this machine: four nodes of 64 CPUs and 8 "GPUs", which no one has. For `make test-slurm`.

Needs root and Debian 12's packages slurm-wlm and munge (`apt-get install --no-install-recommends slurm-wlm munge`). All of its files lie in
one directory, and its daemons are children of this process. Only the names n1 to n4 are written elsewhere, into /etc/hosts, and removed.

  python -m tests.slurm.cluster DIRECTORY    keeps one up until Ctrl-C, to try things with SLURM_CONF=DIRECTORY/slurm.conf
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

NODES = ("n1", "n2", "n3", "n4")
_HOSTS, _LINE = Path("/etc/hosts"), f"127.0.0.1 {' '.join(NODES)}  # tests/slurm\n"

# Slurm refuses GPUs without device files, so eight character devices that every machine has stand for them; nothing opens them.
_GRES = "NodeName=n[1-4] Name=gpu File=/dev/tty[0-7]\n"
# config_overrides: a node may claim more CPUs than the machine has, so the template's own numbers fit.
_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort=6877
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmUser=root
SlurmdUser=root
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool/%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd-%n.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd-%n.log
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
GresTypes=gpu
JobRequeue=1
KillWait=60
NodeName=n[1-4] NodeHostname={host} NodeAddr=127.0.0.1 Port=17101-17104 CPUs=64 CoresPerSocket=64 RealMemory=8000 Gres=gpu:8
PartitionName=main Nodes=n[1-4] Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why no Slurm can be started here; "" where one can."""
    if os.geteuid() != 0:
        return "needs root, which starts Slurm's daemons"
    programs = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if shutil.which(name) is None]
    return f"needs {', '.join(programs)}: apt-get install --no-install-recommends slurm-wlm munge" if programs else ""


@contextlib.contextmanager
def running(directory: Path) -> Iterator[dict[str, str]]:
    """Start a cluster with its files in `directory`; yield the environment for its commands."""
    for name in ("state", "spool", *(f"spool/{node}" for node in NODES)):
        (directory / name).mkdir()
    directory.chmod(0o755)
    (directory / "slurm.conf").write_text(_CONF.format(host=socket.gethostname(), directory=directory))
    (directory / "gres.conf").write_text(_GRES)
    key = directory / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    environment = os.environ | {"SLURM_CONF": str(directory / "slurm.conf")}
    munged = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={directory}/munge.socket"]
    munged += [f"--pid-file={directory}/munge.pid", f"--log-file={directory}/munge.log", f"--seed-file={directory}/munge.seed"]
    daemons = []
    with _names():
        try:
            daemons.append(_start(munged, environment, directory))
            _until(lambda: (directory / "munge.socket").exists(), "munged", directory)
            daemons.append(_start(["slurmctld", "-D"], environment, directory))
            daemons += [_start(["slurmd", "-D", "-N", node], environment, directory) for node in NODES]
            _until(lambda: _idle(environment) == len(NODES), "idle nodes", directory)
            yield environment
        finally:
            subprocess.run(["scancel", "--user=root", "--signal=KILL"], env=environment, capture_output=True)
            for daemon in reversed(daemons):
                daemon.terminate()
                daemon.wait(30)


@contextlib.contextmanager
def _names() -> Iterator[None]:
    """The names of the nodes lead to this machine: JAX looks up the first of them."""
    hosts = _HOSTS.read_text()
    _HOSTS.write_text(hosts + _LINE + (f"127.0.0.1 {socket.gethostname()}\n" if socket.gethostname() not in hosts else ""))
    try:
        yield
    finally:
        _HOSTS.write_text(hosts)


def _start(command: list[str], environment: dict[str, str], directory: Path) -> subprocess.Popen[bytes]:
    with open(directory / "daemons.log", "a") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def _idle(environment: dict[str, str]) -> int:
    done = subprocess.run(["sinfo", "--noheader", "--Node", "--format=%T"], env=environment, capture_output=True, text=True)
    return done.stdout.split().count("idle")


def _until(true: object, what: str, directory: Path) -> None:
    deadline = time.monotonic() + 60
    while not true():  # type: ignore[operator]
        if time.monotonic() > deadline:
            raise RuntimeError(f"no {what} within 60 s; see {directory}/*.log")
        time.sleep(0.2)


if __name__ == "__main__":
    if reason := missing():
        sys.exit(reason)
    place = Path(sys.argv[1]).resolve()
    place.mkdir(parents=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    signal.signal(signal.SIGINT, lambda *_: sys.exit())
    with running(place):
        print(f"export SLURM_CONF={place}/slurm.conf", flush=True)
        time.sleep(10**9)
