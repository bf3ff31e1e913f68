"""The templates of Slurm against an `srun` that plays a run: what is queued again, what is not. `make test-slurm` has a real Slurm."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.house import ROOT

# The run: it ends at once, or on SIGTERM where a file named `stays` lies beside it.
SRUN = r"""#!/usr/bin/env bash
here=$(dirname "$0")
trap 'exit "$(cat "$here/code")"' TERM
printf '%s\n' "cpus=${SRUN_CPUS_PER_TASK:-none}" "$@" >"$here/arguments"
echo $$ >"$here/pid"
while [ -e "$here/stays" ]; do sleep 0.02; done
exit "$(cat "$here/code")"
"""
# As the real one it may fail, and it may return long after the run has ended.
SCANCEL = r"""#!/usr/bin/env bash
here=$(dirname "$0")
echo "scancel $*" >>"$here/calls"
if [ -e "$here/fails" ]; then rm "$here/fails"; exit 1; fi
kill -TERM "$(cat "$here/pid")"
sleep "${LATE:-0}"
"""
CALL = '#!/usr/bin/env bash\necho "$(basename "$0") $*" >>"$(dirname "$0")/calls"\n'


@pytest.fixture
def submit(tmp_path: Path):
    """Run a template as a job whose run ends with `code`, by itself or after the time limit's signal; (exit code, output, calls)."""
    programs, checkout = tmp_path / "programs", tmp_path / "checkout"
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / "bin" / "activate").touch()
    (checkout / "launch").symlink_to(ROOT / "launch")
    programs.mkdir()
    for name, text in {"srun": SRUN, "scancel": SCANCEL, "scontrol": CALL}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)

    def run(code: int, *command: str, at_the_limit: bool = False, **env: str) -> tuple[int, str, list[str]]:
        (programs / "code").write_text(str(code))
        (programs / "calls").write_text("")
        if at_the_limit:
            (programs / "stays").touch()
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SHARDS"))}
        environment |= {"PATH": f"{programs}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(checkout), "SLURM_JOB_ID": "7", **env}
        template, *arguments = command or ("slurm.sbatch", "configs/quickstart.py:epochs=3", "runs/a", "--config.x=a b")
        whole = ["bash", str(ROOT / "launch" / template), *arguments]
        job = subprocess.Popen(whole, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if at_the_limit:
            deadline = time.monotonic() + 30
            while not ((programs / "pid").exists() and (programs / "pid").read_text().endswith("\n")):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            job.send_signal(signal.SIGUSR1)
        output, _ = job.communicate(timeout=30)
        return job.returncode, output, (programs / "calls").read_text().splitlines()

    return run


def test_a_run_that_ends_by_itself_is_not_queued_again(submit, tmp_path):
    assert submit(0, SLURM_CPUS_PER_TASK="64") == (0, "", [])
    cpus, option, *started = (tmp_path / "programs" / "arguments").read_text().splitlines()
    assert cpus == "cpus=64" and option == "--kill-on-bad-exit=1"
    assert started == ["python", "train.py", "--config=configs/quickstart.py:epochs=3", "--workdir=runs/a", "--config.x=a b"]
    assert submit(2) == (2, "", [])  # a mistake
    assert (tmp_path / "programs" / "arguments").read_text().startswith("cpus=none\n")


def test_the_time_limit_asks_the_run_to_save_and_queues_it_again(submit):
    code, output, calls = submit(0, at_the_limit=True)
    assert code == 0 and calls == ["scancel --signal=TERM 7", "scontrol requeue 7"]
    assert re.fullmatch(r"the run ended \d s after the signal; --signal has to give more\n", output)


def test_a_run_that_fails_after_the_signal_is_not_queued_again(submit):
    code, output, calls = submit(1, at_the_limit=True)
    assert code == 1 and calls == ["scancel --signal=TERM 7"] and "after the signal" in output


def test_a_run_that_ends_with_the_code_of_a_broken_wait_ends_the_job(submit):
    """138 is 128 + SIGUSR1: of a task that Python had not begun to protect from that signal."""
    assert submit(138) == (138, "", [])


def test_a_run_that_the_signal_ended_before_it_listened_is_queued_again(submit):
    code, _, calls = submit(143, at_the_limit=True)
    assert code == 143 and calls == ["scancel --signal=TERM 7", "scontrol requeue 7"]


def test_a_run_that_ends_while_scancel_still_works_is_queued_again(submit):
    code, _, calls = submit(0, at_the_limit=True, LATE="1")
    assert code == 0 and calls == ["scancel --signal=TERM 7", "scontrol requeue 7"]


def test_a_failed_scancel_is_repeated(submit, tmp_path):
    (tmp_path / "programs" / "fails").touch()
    code, output, calls = submit(0, at_the_limit=True)
    assert code == 0 and calls == ["scancel --signal=TERM 7", "scancel --signal=TERM 7", "scontrol requeue 7"]
    assert output.startswith("scancel failed, and is repeated\n")


def test_a_signal_before_the_run_begins_is_not_lost(submit, tmp_path):
    """It comes while the environment is being set up, which takes seconds on a slow disk."""
    activate = tmp_path / "checkout" / ".venv" / "bin" / "activate"
    activate.write_text("kill -USR1 $$\n")
    (tmp_path / "programs" / "stays").touch()
    code, _, calls = submit(0)
    assert code == 0 and calls[0] == "scancel --signal=TERM 7" and calls[-1] == "scontrol requeue 7"


ABLATE = ("slurm_array.sbatch", "ablate", "--table=8", "--workdir=a b")
SECOND = {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_MAX": "8"}
SECOND |= {"SLURM_ARRAY_TASK_COUNT": "9"}


def test_a_task_of_an_array_runs_its_share(submit, tmp_path):
    assert submit(0, *ABLATE, **SECOND) == (0, "", [])
    _, _, *started = (tmp_path / "programs" / "arguments").read_text().splitlines()
    assert started == ["python", "-m", "sere_jax", "ablate", "--table=8", "--workdir=a b", "--shard=2/9"]


def test_a_task_of_an_array_is_queued_again_without_the_others(submit):
    """The last task's own number is that of the array."""
    code, _, calls = submit(0, *ABLATE, at_the_limit=True, **SECOND | {"SLURM_ARRAY_TASK_ID": "8", "SLURM_ARRAY_JOB_ID": "7"})
    assert code == 0 and calls == ["scancel --signal=TERM 7_8", "scontrol requeue 7_8"]


@pytest.mark.parametrize(("first", "last", "count"), [("1", "8", "8"), ("0", "6", "4"), ("0", "7", "3"), ("", "", "no")])
def test_an_array_that_leaves_shares_out_is_refused(submit, first: str, last: str, count: str):
    env = {"SLURM_ARRAY_TASK_MIN": first, "SLURM_ARRAY_TASK_MAX": last, "SLURM_ARRAY_TASK_COUNT": count}
    message = f"--array: found {count} tasks, from {first} to {last}, expected --array=0-LAST, or SHARDS=N before sbatch\n"
    assert submit(0, *ABLATE, **(SECOND | env if first else {})) == (2, message, [])


ALONE = {"SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_MAX": "3"}
ALONE |= {"SLURM_ARRAY_TASK_COUNT": "1"}


def test_one_task_of_an_array_is_submitted_alone(submit, tmp_path):
    """It runs the share that it has in the whole array; without SHARDS it could be any share."""
    assert submit(0, *ABLATE, SHARDS="8", **ALONE) == (0, "", [])
    assert (tmp_path / "programs" / "arguments").read_text().splitlines()[-1] == "--shard=3/8"
    message = "--array: found 1 tasks, from 3 to 3, expected --array=0-LAST, or SHARDS=N before sbatch\n"
    assert submit(0, *ABLATE, **ALONE) == (2, message, [])


def test_a_task_that_was_submitted_alone_is_queued_again_as_one_of_its_own_array(submit):
    code, _, calls = submit(0, *ABLATE, at_the_limit=True, SHARDS="4", **ALONE)
    assert code == 0 and calls == ["scancel --signal=TERM 9_3", "scontrol requeue 9_3"]


@pytest.mark.parametrize("shards", ["3", "0", "08", "eight", "8 ", "-8", "99999999999999999999"])
def test_shares_that_a_task_does_not_fit_are_refused(submit, shards: str):
    code, output, calls = submit(0, *ABLATE, SHARDS=shards, **ALONE)
    assert (code, calls) == (2, [])
    assert output == f"SHARDS: found {shards} with tasks up to 3, expected the number of all shares, above that of every task\n"


def test_shares_without_an_array_are_refused(submit):
    code, output, calls = submit(0, *ABLATE, SHARDS="8")
    assert (code, calls) == (2, []) and output.startswith("SHARDS: found 8 with tasks up to none, expected")
