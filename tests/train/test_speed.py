"""What the driver tells of a run's speed, the traces that it takes, and what it does while the step is compiled."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sere_jax.train.meter import Work
from sere_jax.train.tracing import TracedSteps
from tests.train import toy_run
from tests.train.test_fit import Listener, run


def test_speed_is_told_in_images_devices_operations_and_percentiles():
    listener = Listener()
    run(None, 12, listener, log_every_steps=6, work=lambda: Work(16, operations=1e6, peak=1e9, devices=8))
    values = listener.written[-1][1]
    assert values["speed/images_per_second"] == pytest.approx(16 / values["speed/seconds_per_step"])
    assert values["speed/images_per_second_per_device"] == pytest.approx(2 / values["speed/seconds_per_step"])
    assert values["speed/mfu"] == pytest.approx(1e-3 / values["speed/seconds_per_step"])
    assert 0 < values["speed/seconds_p50"] <= values["speed/seconds_p95"] < 6.5 * values["speed/seconds_per_step"]
    assert 0.05 < values["memory/host_peak_gib"] < 500


def test_steps_are_traced_on_request(tmp_path: Path):
    listener = Listener()
    run(None, 6, listener, traced=TracedSteps(3, 2, tmp_path / "trace"))
    (events,) = (tmp_path / "trace").rglob("*.trace.json.gz")
    assert list(events.parent.glob("*.xplane.pb"))
    with gzip.open(events) as file:
        steps = {event["args"]["step_num"] for event in json.load(file)["traceEvents"] if event.get("name") == "step" and "args" in event}
    assert steps == {"3", "4"} and any("trace of the steps from 3" in note for note in listener.notes)
    run(None, 1, listener, traced=TracedSteps(3, 2, tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_a_trace_that_cannot_be_written_is_lost_and_the_run_is_not(tmp_path: Path):
    (tmp_path / "file").write_text("no directory")
    listener = Listener()
    state = run(None, 6, listener, traced=TracedSteps(3, 2, tmp_path / "file" / "trace"))
    assert int(state.step) == 6
    (told,) = [note for note in listener.notes if "trace" in note]
    assert told.startswith("warning: the trace of the steps from 3 cannot be written to") and "Not a directory" in told
    run(None, 6, listener, traced=TracedSteps(3, 2, tmp_path / "next"))  # the profiler is free again
    assert list((tmp_path / "next").rglob("*.trace.json.gz"))


def test_the_first_batch_is_made_while_the_step_is_compiled():
    made = threading.Event()

    def first(start: int) -> Iterator[Any]:
        made.set()
        yield from toy_run.batches(start)

    def compile_step() -> Any:
        assert made.wait(20), "nothing is read before the step is compiled"
        return toy_run.pieces()["compile_step"]()

    run(None, 2, feed=first, compile_step=compile_step)
