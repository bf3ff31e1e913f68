from __future__ import annotations

import json
import types
from collections.abc import Callable
from typing import Any

import pytest

from sere_jax.commands import data_bench
from sere_jax.data.images.reading import ImageReading
from tests.data.images.images import MemorySource, encode, gradient

READ, DECODE, CROP, BATCH = 1.0, 2.0, 4.0, 10.0  # seconds an image on the clock of the test


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """CPU seconds so far: nothing takes time but what the test says."""
    now = [0.0]
    monkeypatch.setattr(data_bench, "time", types.SimpleNamespace(process_time=lambda: now[0]))

    def taking(seconds: float, work: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*arguments: Any, **settings: Any) -> Any:
            now[0] += seconds
            return work(*arguments, **settings)

        return slow

    monkeypatch.setattr(data_bench, "decode", taking(DECODE, data_bench.decode))
    monkeypatch.setattr(data_bench, "make_views", taking(CROP, data_bench.make_views))
    monkeypatch.setattr(data_bench.BatchMaker, "__call__", taking(20 * BATCH, data_bench.BatchMaker.__call__))
    monkeypatch.setattr(MemorySource, "__getitem__", taking(READ, MemorySource.__getitem__))
    return now


@pytest.mark.parametrize(("bad", "missing"), [([], []), ([3, 7], [4])])
def test_stages_are_timed_an_image_and_what_is_left_of_a_batch_is_assembling(clock: list[float], bad: list[int], missing: list[int]):
    """Every batch is the whole source; an image that cannot be read is not decoded, one that cannot be decoded is not cropped."""
    recipe = data_bench.ViewRecipe(16, local_count=1, local_size=8)
    host = data_bench.host_stages(MemorySource(20, bad=bad, missing=missing), recipe, 20, 3, ImageReading())
    decoded, cropped = 20 - len(missing), 20 - len(missing) - len(bad)
    expected = {"read": 1000 * READ, "decode": 1000 * DECODE * decoded / 20, "crop": 1000 * CROP * cropped / 20}
    assert {name: host[name] for name in expected} == expected
    # A batch reads replacements as well, so that it takes longer with bad images than without.
    assert host["batch"] == 1000 * (BATCH + READ) if not bad else host["batch"] > 1000 * (BATCH + READ)
    assert host["assemble"] == host["batch"] - sum(expected.values())


def test_the_program(tmp_path, capsys):
    for i in range(6):
        (tmp_path / f"{i}.jpg").write_bytes(encode(gradient(40, 50, i), "JPEG"))
    options = ["--global_size=16", "--local_size=8", "--local_count=1", "--batch_size=4", "--rounds=2", "--images_per_second=500"]
    assert data_bench.main([f"--source=folder:{tmp_path}", *options, f"--json={tmp_path / 'out.json'}"]) == 0
    shown = capsys.readouterr().out
    assert "device augmentation" in shown and "500 images/s need" in shown
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["cores"]["500"] == pytest.approx(found["milliseconds"]["batch"] / 2)
    assert data_bench.main(["--source=folder:/nowhere/at all"]) == 2


def test_cores():
    assert data_bench.cores(2.0, 3000.0) == 6.0
