"""The driver with a toy training: resume, signals, bad steps, bad images, what is logged. The real one is held by test_train."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sere_jax.train import checkpoint
from sere_jax.train.checkpoint_manager import Checkpoints
from sere_jax.train.evaluations import Periodic
from sere_jax.train.fit import Stopped, fit
from sere_jax.train.meter import Limits, TooManyBadImages, TooManyBadSteps
from sere_jax.train.prefetch import DataEnded
from tests.processes import free_port
from tests.train import toy_run
from tests.train.toy_fit import Listener, run

ROOT = Path(__file__).resolve().parents[2]


def bits(state: Any) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


def test_resumed_in_the_middle_is_bit_identical_to_never_stopped(tmp_path: Path):
    whole = run(None, 13)
    run(tmp_path, 6)
    listener = Listener()
    resumed = run(tmp_path, 13, listener)
    assert listener.started == 6 and listener.advanced == list(range(7, 14))
    assert bits(resumed) == bits(whole)
    assert checkpoint.read_state(tmp_path)[1] == 13
    again = Listener()
    assert bits(run(tmp_path, 13, again)) == bits(whole) and "nothing to train" in again.notes[0]


def test_resumed_on_another_mesh_is_the_same_training(tmp_path: Path):
    """Sums over the batch and over parameters run in another order there: equal to float32 rounding, not to the bit."""
    whole = run(None, 12)
    run(tmp_path, 6, fsdp=8)
    resumed = run(tmp_path, 12, fsdp=2)
    assert int(resumed.step) == 12
    np.testing.assert_allclose(resumed.params["w"], whole.params["w"], rtol=2e-5, atol=2e-6)


def test_what_is_logged_is_the_mean_since_the_last_log():
    listener = Listener()
    run(None, 7, listener, log_every_steps=3)
    assert [step for step, _ in listener.written] == [3, 6, 7]
    assert [values["at"] for _, values in listener.written] == [2.0, 5.0, 7.0]
    one_by_one = Listener()
    run(None, 7, one_by_one, log_every_steps=1)
    losses = [values["loss"] for _, values in one_by_one.written]
    assert listener.written[1][1]["loss"] == pytest.approx(sum(losses[3:6]) / 3, rel=1e-6)
    for _, values in listener.written:
        assert values["bad_steps"] == 0 and values["data/replaced"] == 0 and "bad_step" not in values
        assert 0 <= values.get("speed/data_wait", 0) <= 1 and values.get("speed/images_per_second", 1) > 0


def test_evaluations_come_by_cadence_and_at_the_end_in_one_record_with_the_metrics():
    listener = Listener()
    seen: list[int] = []

    def evaluate(state: Any, step: int) -> Iterator[tuple[str, float]]:
        assert int(state.step) == step
        seen.append(step)
        yield "knn", 0.5

    run(None, 7, listener, log_every_steps=2, evaluations=[Periodic("knn", 3, evaluate), Periodic("never", 0, evaluate)])
    assert seen == [3, 6, 7]
    assert [(step, "knn" in values, "loss" in values) for step, values in listener.written] == [
        (2, False, True),
        (3, True, False),
        (4, False, True),
        (6, True, True),
        (7, True, True),
    ]


def test_an_evaluation_that_a_signal_cut_short_is_done_after_the_restart_and_once(tmp_path: Path):
    """The last one included; the finished run compiles nothing for it."""
    ran: list[int] = []

    def cut_short(state: Any, step: int) -> Iterator[tuple[str, float]]:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        yield "knn", 0.0

    def whole(state: Any, step: int) -> Iterator[tuple[str, float]]:
        assert int(state.step) == step
        ran.append(step)
        yield "knn", 0.5

    with pytest.raises(Stopped, match="after step 6 of 6"):
        run(tmp_path, 6, evaluations=[Periodic("knn", 6, cut_short)])

    def never() -> Any:
        raise AssertionError("a finished run compiled its step")

    for _ in range(2):
        listener = Listener()
        run(tmp_path, 6, listener, evaluations=[Periodic("knn", 6, whole)], compile_step=never)
        assert ran == [6]
    assert not listener.written


def test_a_checkpoint_of_step_0_is_restored(tmp_path: Path):
    """It holds the weights that the run started from, which may be gone by now."""
    pieces = toy_run.pieces()
    start = pieces["init"]()._replace(bad_steps=jnp.int32(2))
    with Checkpoints(tmp_path, every_steps=4) as checkpoints:
        checkpoints.save(0, start, {}, force=True)

    def never() -> Any:
        raise AssertionError("the run was initialised again")

    assert int(run(tmp_path, 2, init=never).bad_steps) == 2


def with_bad_steps(*bad: int) -> Any:
    return lambda start: toy_run.batches(start, bad=bad)


def test_bad_steps_are_counted_and_left_out_of_the_means(tmp_path: Path):
    listener = Listener()
    skipped: list[int] = []
    state = run(tmp_path, 8, listener, feed=with_bad_steps(3, 7, 8), on_bad=skipped.append)
    assert skipped == [3, 7, 8]
    assert int(state.bad_steps) == 3 and all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(state))
    assert [(step, values["bad_steps"], values["at"]) for step, values in listener.written][:2] == [(2, 0.0, 1.5), (4, 1.0, 4.0)]
    assert np.isnan(listener.written[-1][1]["loss"]), "no good step between 6 and 8"


def test_bad_steps_are_bounded_in_a_row_and_by_their_share(tmp_path: Path):
    limits = Limits(bad_steps=2, bad_step_share=0.005)  # of at least 1000 steps: five
    state = run(tmp_path, 14, feed=with_bad_steps(1, 2, 4, 8, 9), limits=limits)
    assert int(state.bad_steps) == 5, "five, but never three in a row"
    with pytest.raises(TooManyBadSteps, match=r"step 16 had .* 6 of 16 steps had; run\.max_bad_share allows 0\.005.*learning rate"):
        run(tmp_path, 20, feed=with_bad_steps(16), limits=limits)
    assert checkpoint.read_state(tmp_path)[1] == 14
    with pytest.raises(TooManyBadSteps, match=r"step 5 had .* 3 steps in a row had; run\.max_bad_steps allows 2"):
        run(None, 9, feed=with_bad_steps(3, 4, 5), limits=limits)
    with pytest.raises(TooManyBadSteps, match="step 1 had"):
        run(None, 5, feed=with_bad_steps(1), limits=Limits(bad_steps=0))


def test_bad_images_are_counted_and_bounded():
    listener = Listener()
    # 1 of 16 is more than 1 %, but 10 of them are borne before the share is believed: 10 steps.
    run(None, 10, listener, feed=lambda start: toy_run.batches(start, broken=1))
    assert listener.written[-1][1]["data/replaced"] == 10
    with pytest.raises(TooManyBadImages, match=r"12 of 192 images .*; max_bad_fraction allows 0\.01"):
        run(None, 20, feed=lambda start: toy_run.batches(start, broken=1))
    run(None, 20, feed=lambda start: toy_run.batches(start, broken=1), limits=Limits(bad_image_share=0.1))


def test_an_error_of_the_data_and_its_end_reach_the_caller():
    def broken(start: int) -> Iterator[Any]:
        yield from (batch for batch, _ in zip(toy_run.batches(start), range(3), strict=False))
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        run(None, 9, feed=broken)
    with pytest.raises(DataEnded, match="after 3 of the 9 batches"):
        run(None, 9, feed=lambda start: iter([batch for batch, _ in zip(toy_run.batches(start), range(3), strict=False)]))
    assert not [thread for thread in threading.enumerate() if thread.name == "batches"]


def test_batches_are_made_one_ahead_and_no_further():
    made: list[int] = []
    done: list[int] = []

    def counting(start: int) -> Iterator[Any]:
        for number, batch in enumerate(toy_run.batches(start), start + 1):
            made.append(number)
            yield batch

    def check(state: Any, step: int) -> Iterator[tuple[str, float]]:
        time.sleep(0.1)  # the thread has had time to run ahead, if it would
        done.append(step)
        assert made[-1] == min(step + 1, 4)
        yield "x", 0.0

    run(None, 4, feed=counting, evaluations=[Periodic("check", 1, check)])
    assert done == [1, 2, 3, 4] and made == [1, 2, 3, 4]


def test_waiting_for_data_is_the_time_the_device_is_idle():
    slow_data, quick_data = Listener(), Listener()
    run(None, 20, slow_data, feed=lambda start: toy_run.batches(start, delay=0.03), log_every_steps=10)
    assert slow_data.written[-1][1]["speed/data_wait"] > 0.5
    step = toy_run.pieces()["compile_step"]()

    def slow_step(state: Any, batch: Any) -> Any:
        time.sleep(0.03)
        return step(state, batch)

    run(None, 20, quick_data, compile_step=lambda: slow_step, log_every_steps=10)
    assert quick_data.written[-1][1]["speed/data_wait"] < 0.2


def start_toy(directory: Path, *arguments: str, devices: int = 1) -> subprocess.Popen[str]:
    # The suite's own compiler flags, for the same bits; of the device counts the last one counts.
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    environ = {**os.environ, "XLA_FLAGS": flags, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, str(ROOT / "tests" / "train" / "toy_run.py"), str(directory), *arguments]
    return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def read_until(process: subprocess.Popen[str], word: str) -> str:
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if word in line:
            return seen
    raise AssertionError(f"never said {word!r}:\n{seen}")


def assert_same_end(directory: Path, total: int) -> None:
    """The arrays of the last step are those of a run that nothing happened to, and no step is logged twice."""
    state, step = checkpoint.read_state(directory)
    assert step == total
    mine = toy_run.pieces()
    whole = fit(
        **{**mine, "put": jax.device_put, "compile_step": lambda: jax.jit(toy_run.train_step), "init": jax.jit(toy_run.init)},
        batches=toy_run.batches,
        total_steps=total,
        checkpoints=None,
        progress=Listener(),
    )
    for name, leaf in checkpoint.named_leaves(whole).items():
        assert np.asarray(leaf).tobytes() == checkpoint.named_leaves(state)[name].tobytes(), name
    steps = [json.loads(line)["step"] for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)) and steps[-1] == total


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_last_step_and_exits_with_0(tmp_path: Path, number: signal.Signals):
    process = start_toy(tmp_path, "total=60", "delay=0.02", "every=1000")
    read_until(process, "step 12/60")
    process.send_signal(number)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    step = checkpoint.read_state(tmp_path)[1]
    assert 12 <= step < 60 and f"stopped by {number.name} after step {step} of 60" in output
    if number == signal.SIGINT:
        return
    again = start_toy(tmp_path, "total=60")
    output, _ = again.communicate(timeout=300)
    assert again.returncode == 0 and f"resumed from step {step}" in output, output
    assert_same_end(tmp_path, 60)


@pytest.mark.parametrize(
    "arguments", [("evaluate=4", "evaluation=60"), pytest.param(("delay=60",), marks=pytest.mark.slow)], ids=["evaluation", "data"]
)
def test_a_signal_does_not_wait_for_a_long_evaluation_or_for_data(tmp_path: Path, arguments: tuple[str, ...]):
    process = start_toy(tmp_path, "total=60", *arguments)
    if arguments[0] == "delay=60":
        time.sleep(4)
        expected = 0
    else:
        read_until(process, "evaluating 4")
        expected = 4
    began = time.monotonic()
    process.terminate()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and time.monotonic() - began < 20, output
    assert f"stopped by SIGTERM after step {expected} of 60" in output
    assert checkpoint.read_state(tmp_path)[1] == expected


def kill_and_resume(directory: Path, seed: int, kills: int) -> None:
    moments = random.Random(seed)
    for _ in range(kills):
        process = start_toy(directory, "total=60", "delay=0.01", "every=3")
        read_until(process, "step ")
        time.sleep(moments.uniform(0.0, 0.5))
        process.kill()
        process.communicate()
    process = start_toy(directory, "total=60", "every=3")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert_same_end(directory, 60)


def test_sigkill_and_resume_is_bit_identical(tmp_path: Path):
    kill_and_resume(tmp_path, seed=0, kills=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_many_sigkills_and_resume_is_bit_identical(tmp_path: Path, seed: int):
    kill_and_resume(tmp_path, seed, kills=5)


def test_sigterm_to_one_of_two_processes_saves_the_same_step_on_both(tmp_path: Path):
    def start(*arguments: str) -> list[subprocess.Popen[str]]:
        port = free_port()
        return [start_toy(tmp_path, *arguments, f"port={port}", f"rank={rank}", devices=2) for rank in (0, 1)]

    pair = start("total=400", "delay=0.02", "every=1000")
    read_until(pair[0], "step 12/400")
    pair[1].terminate()
    outputs = [process.communicate(timeout=300)[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], "\n".join(outputs)
    step = checkpoint.read_state(tmp_path)[1]
    assert 12 <= step < 400 and all(f"after step {step} of 400" in output for output in outputs), "\n".join(outputs)
    pair = start(f"total={step + 6}")
    outputs = [process.communicate(timeout=300)[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], "\n".join(outputs)
    assert f"resumed from step {step}" in outputs[0]
    whole = run(None, step + 6, fsdp=1)
    # Four devices of two processes against eight of one: the order of sums differs.
    np.testing.assert_allclose(checkpoint.read_state(tmp_path)[0]["params"]["w"], whole.params["w"], rtol=2e-5, atol=2e-5)
