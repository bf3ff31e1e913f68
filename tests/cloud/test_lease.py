"""One run a workdir in a bucket: who waits, who takes over, and who ends."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sere_jax import buckets
from sere_jax.train.lease import Taken, leased
from sere_jax.writing import place
from tests.commands.test_pretrain import ROOT, environment

KILLED = b'{"host": "other", "pid": 7, "since": "yesterday", "token": "t", "slurm_job": "12", "slurm_start": "0"}'


def test_one_run_a_workdir(bucket, capfd):
    path = place(f"{bucket}/run/.lock")
    with leased(path, beat_seconds=0.05):
        with pytest.raises(Taken, match="^process \\d+ on "), leased(path, dead_after_seconds=2.0):
            pass
        assert path.exists()
    assert not path.exists()
    buckets.put_bytes(path, b'{"host": "other", "pid": 7, "since": "yesterday", "token": "t"}')  # one that was killed
    with leased(path, beat_seconds=0.05, dead_after_seconds=0.2):
        assert b"other" not in path.read_bytes()
    assert "process 7 on other, since yesterday) and did not say that it ended; waiting 0 s for a sign" in capfd.readouterr().err


def test_a_requeued_job_takes_over_at_once_and_begins_when_its_earlier_start_has_ended(bucket, server, monkeypatch):
    """That start lives on, as after the failure of a node."""
    script = "import sys, time\nfrom sere_jax.train.lease import leased\nfrom sere_jax.writing import place\n"
    script += "with leased(place(sys.argv[1]), beat_seconds=0.2):\n    print('held', flush=True)\n    time.sleep(600)"
    path = f"{bucket}/run/.lock"
    env = environment(SLURM_JOB_ID="12", SLURM_RESTART_COUNT="0", **server.environment)
    earlier = subprocess.Popen([sys.executable, "-c", script, path], cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert earlier.stdout and earlier.stdout.readline() == b"held\n"
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with leased(place(path), beat_seconds=5.0, dead_after_seconds=600.0):
        assert earlier.poll() == 1 and f'"pid": {os.getpid()}'.encode() in place(path).read_bytes()
    _, errors = earlier.communicate()
    assert f"another run has taken over the workdir (process {os.getpid()} on ".encode() in errors


def test_another_run_of_the_same_job_waits(bucket, monkeypatch):
    path = place(f"{bucket}/run/.lock")
    buckets.put_bytes(path, KILLED)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setattr("sere_jax.train.lease._Lease._wait", lambda *_: (_ for _ in ()).throw(Taken("waits")))
    with pytest.raises(Taken, match="waits"), leased(path, dead_after_seconds=600.0):
        pass


def test_a_late_beat_of_the_earlier_start_does_not_take_the_lease_back(bucket, monkeypatch):
    """It had read its own token before the lease was taken, and writes after that."""
    path, pauses = place(f"{bucket}/run/.lock"), []
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 1:
            buckets.put_bytes(path, KILLED)

    buckets.put_bytes(path, KILLED)
    monkeypatch.setattr("sere_jax.train.lease.time.sleep", sleep)
    with leased(path, dead_after_seconds=600.0):
        assert pauses == [40.0, 40.0] and f'"pid": {os.getpid()}'.encode() in path.read_bytes()


def test_of_two_that_take_a_dead_lease_over_one_goes_on(bucket, monkeypatch):
    """The other one deletes the object of this one, makes its own, and beats."""
    path, beats = place(f"{bucket}/run/.lock"), []
    buckets.put_bytes(path, KILLED)

    def sleep(seconds: float) -> None:
        if seconds == 40.0 or beats:
            beats.append(seconds)
            buckets.put_bytes(path, b'{"host": "faster", "pid": 8, "since": "now", "token": "u", "beat": %d}' % len(beats))

    monkeypatch.setattr("sere_jax.train.lease.time.sleep", sleep)
    with pytest.raises(Taken, match="process 8 on faster"), leased(path, dead_after_seconds=1.0):
        pass


def test_a_bucket_that_contradicts_itself_ends_the_wait(bucket, server, monkeypatch):
    """A conflict for an object that is not there: as of a bucket whose retention forbids to write the name again."""
    pauses: list[float] = []
    monkeypatch.setattr("sere_jax.train.lease.time.sleep", pauses.append)
    server.fail(412, 1000, method="POST")
    with pytest.raises(OSError, match="because it is there, and does not find it"), leased(place(f"{bucket}/run/.lock")):
        pass
    assert 10 < len(pauses) < 100 and min(pauses) > 0.1
