"""launch/tpu_vm.sh against a `gcloud` that records its calls and plays the states of a queued resource."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.house import ROOT

# Arguments end in the character 1f, calls in 1e: calls run beside each other, and bash writes up to a line's end at a time.
# Of several states or exit codes the last one stays.
GCLOUD = r"""#!/usr/bin/env bash
here=$(dirname "$0")
call=$(printf '%s\x1f' "$@")
printf '%s\x1e' "$call" >>"$here/calls"
next() {
  read -r first rest <"$here/$1"
  [ -z "$rest" ] || echo "$rest" >"$here/$1"
}
case " $* " in
  *" describe "*) next states; [ "$first" != NONE ] && echo "$first" ;;
  *" ssh "*train.py*) next codes; exit "$first" ;;
esac
"""


@pytest.fixture
def launch(tmp_path: Path):
    """Run the script with these states and exit codes of training; (exit code, output, calls of gcloud)."""
    (tmp_path / "gcloud").write_text(GCLOUD)
    (tmp_path / "gcloud").chmod(0o755)

    def run(
        states: str, codes: str = "0", extra: tuple[str, ...] = (), workdir: str = "gs://bucket/runs/a", **env: str
    ) -> tuple[int, str, list[list[str]]]:
        (tmp_path / "states").write_text(f"{states}\n")
        (tmp_path / "codes").write_text(f"{codes}\n")
        (tmp_path / "calls").unlink(missing_ok=True)
        environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "NAME": "sere", "ZONE": "z", "TYPE": "v5litepod-64"}
        environment |= {"WAIT_SECONDS": "0.01", **env}
        command = ["bash", "launch/tpu_vm.sh", "configs/quickstart.py:epochs=3", workdir, *extra]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
        texts = (tmp_path / "calls").read_text().split("\x1e") if (tmp_path / "calls").exists() else []
        calls = [call.rstrip("\x1f").split("\x1f") for call in texts if call]
        assert all(call[:2] == ["compute", "tpus"] and call[-1] == "--zone=z" for call in calls), calls
        return done.returncode, done.stdout + done.stderr, [call[2:-1] for call in calls]

    return run


def verbs(calls: list[list[str]]) -> list[str]:
    return [call[1] for call in calls if call[1] != "describe"]


def test_a_slice_is_made_installed_and_trained_on(launch):
    code, out, calls = launch("NONE WAITING_FOR_RESOURCES WAITING_FOR_RESOURCES ACTIVE", extra=("--config.x=a b",))
    assert code == 0 and out.endswith("finished: gs://bucket/runs/a\n")
    assert verbs(calls) == ["create", "scp", "ssh", "ssh"]
    create = next(call for call in calls if call[1] == "create")
    expected = ["--node-id=sere", "--accelerator-type=v5litepod-64", "--runtime-version=v2-alpha-tpuv5-lite"]
    assert create == ["queued-resources", "create", "sere", *expected]
    command = calls[-1][-1].removeprefix("--command=")
    started = shlex.split(command.partition(" && exec ")[2])
    flags = ["--config=configs/quickstart.py:epochs=3", "--workdir=gs://bucket/runs/a", "--stopped_exit_code=75", "--config.x=a b"]
    assert started == [".venv/bin/python", "train.py", *flags]


def test_several_spot_slices_are_one_run(launch):
    code, _, calls = launch("NONE ACTIVE", SLICES="3", SPOT="1", SETUP="mount-it")
    assert code == 0
    create = next(call for call in calls if call[1] == "create")
    assert {"--node-prefix=sere", "--node-count=3", "--spot"} <= set(create)
    assert [call[2] for call in calls if call[1] == "scp"] != [] and verbs(calls) == ["create"] + ["scp"] * 3 + ["ssh"] * 9
    assert {call[2] for call in calls if call[1] == "ssh"} == {"sere-0", "sere-1", "sere-2"}
    assert sum(call[-1] == "--command=mount-it" for call in calls) == 3


def test_slices_that_are_there_are_used(launch):
    code, _, calls = launch("ACTIVE")
    assert code == 0 and "create" not in verbs(calls) and "delete" not in verbs(calls)


def test_preempted_slices_are_replaced_and_the_run_goes_on(launch):
    # there; training breaks off; suspended: deleted, asked for again, there
    code, out, calls = launch("ACTIVE ACTIVE SUSPENDED SUSPENDED ACTIVE", codes="255 0", RESTARTS="1", SPOT="1")
    assert code == 0 and "the slices are SUSPENDED: starting again" in out
    assert verbs(calls) == ["scp", "ssh", "ssh", "delete", "create", "scp", "ssh", "ssh"]
    assert ["queued-resources", "delete", "sere", "--force", "--quiet"] in calls
    code, out, calls = launch("ACTIVE ACTIVE SUSPENDED", codes="255", RESTARTS="0")
    assert code == 75 and "the same command goes on" in out


def test_a_preemption_that_shows_late_is_none_of_the_run(launch):
    """The hosts get their signal, and one loses the others, while the state is still that of slices in use."""
    for code in ("75", "1"):
        got, out, calls = launch("ACTIVE ACTIVE ACTIVE ACTIVE SUSPENDING SUSPENDING SUSPENDING ACTIVE", codes=f"{code} 0", RESTARTS="1")
        assert got == 0 and "the slices are SUSPENDING: starting again" in out and "delete" in verbs(calls), out


def test_a_run_that_a_signal_stopped_goes_on_where_it_is(launch):
    code, out, calls = launch("ACTIVE", codes="75 0", RESTARTS="1")
    assert code == 0 and "the slices are ACTIVE: starting again" in out and verbs(calls) == ["scp", "ssh", "ssh"] * 2
    code, out, calls = launch("ACTIVE", codes="75")
    assert code == 75 and verbs(calls) == ["scp", "ssh", "ssh"] and "the same command goes on" in out
    code, out, calls = launch("ACTIVE", codes="1", RESTARTS="5")
    assert code == 1 and verbs(calls) == ["scp", "ssh", "ssh"] and "train.py failed with code 1; the slices are still there" in out


def test_a_run_that_fails_on_slices_that_are_there_is_not_repeated(launch):
    code, out, calls = launch("ACTIVE", codes="2", RESTARTS="5")
    assert len(calls) == 6  # three of them look at the state; a mistake needs no more
    assert code == 2 and "train.py failed with code 2; the slices are still there" in out and verbs(calls) == ["scp", "ssh", "ssh"]


def test_a_request_that_fails_ends_it(launch):
    code, out, _ = launch("NONE WAITING_FOR_RESOURCES FAILED")
    assert code == 1 and "the request for sere failed" in out


def test_slices_that_are_lost_while_they_are_waited_for_end_the_wait(launch):
    """A wait that looks for nothing but slices in use would last for ever."""
    code, out, calls = launch("NONE WAITING_FOR_RESOURCES SUSPENDED WAITING_FOR_RESOURCES ACTIVE", SPOT="1")
    assert code == 0 and verbs(calls)[:3] == ["create", "delete", "create"], out
    code, out, calls = launch("NONE WAITING_FOR_RESOURCES NONE")
    assert code == 1 and "the request for sere is gone" in out and verbs(calls) == ["create"]
    code, out, _ = launch("NONE WAITING_FOR_RESOURCES NONE NONE ACTIVE")  # a look that failed
    assert code == 0, out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"SLICES": "0"}, "SLICES: found 0"),
        ({"SLICES": "two"}, "SLICES: found two"),
        ({"RESTARTS": "-1"}, "RESTARTS: found -1"),
        ({"SPOT": "no"}, "SPOT: found no"),
        ({"workdir": "runs/a"}, "found runs/a, expected one that all hosts see: gs://BUCKET/NAME, or a mount"),
        ({"NAME": ""}, "NAME"),
    ],
)
def test_settings_that_say_nothing_ask_for_nothing(launch, settings, message):
    code, out, calls = launch("NONE ACTIVE", **settings)
    assert code != 0 and message in out and calls == []


def test_spot_0_asks_for_capacity_on_demand(launch):
    code, _, calls = launch("NONE ACTIVE", SPOT="0")
    assert code == 0 and "--spot" not in next(call for call in calls if call[1] == "create")


PYTHON3 = r"""#!/bin/bash
echo "$*" >>"$HOME/calls"
[ "$2" != uv ] || { mkdir -p .venv/bin; printf '#!/bin/bash\necho "$*" >>"$HOME/pips"\n' >.venv/bin/pip; chmod +x .venv/bin/pip; }
"""


def test_a_host_without_the_python_gets_one(launch, tmp_path):
    """As TPU images of Ubuntu 22.04 are; what the hosts are told is run here."""
    _, _, calls = launch("ACTIVE", PYTHON="python9.9")
    install = next(call[-1] for call in calls if call[1] == "ssh").removeprefix("--command=")
    host = tmp_path / "host"
    (host / "sere_jax").mkdir(parents=True)
    (host / "sere_jax" / "requirements.txt").write_text("jax==0.1\n")
    subprocess.run(["tar", "czf", "sere_jax.tar.gz", "sere_jax"], cwd=host, check=True)
    (host / "python3").write_text(PYTHON3)
    (host / "python3").chmod(0o755)
    env = {"HOME": str(host), "PATH": f"{host}:{os.environ['PATH']}"}
    for _ in range(2):
        assert subprocess.run(["bash", "-c", install], cwd=host, env=env, capture_output=True).returncode == 0
    assert (host / "calls").read_text() == "-m pip install -q --user uv\n-m uv venv -q --clear --seed --python 3.11 .venv\n"
    assert [line.split(" -c ")[0] for line in (host / "pips").read_text().splitlines()] == [
        "install -q -r requirements-cloud.txt",
        "install -q jax[tpu]",
    ] * 2
    (host / "sere_jax.tar.gz").write_bytes(b"")
    assert subprocess.run(["bash", "-c", install], cwd=host, env=env, capture_output=True).returncode != 0
