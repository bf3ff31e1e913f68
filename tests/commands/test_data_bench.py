from __future__ import annotations

import json

import pytest

from sere_jax.commands import data_bench
from sere_jax.data.images.reading import ImageReading
from tests.data.images.images import MemorySource, encode, gradient


def test_stages_of_a_source_with_bad_images():
    host = data_bench.host_stages(
        MemorySource(20, bad=[3], missing=[4]), data_bench.ViewRecipe(16, local_count=1, local_size=8), 8, 2, ImageReading()
    )
    assert set(host) == {"read", "decode", "crop", "assemble", "batch"} and all(value >= 0 for value in host.values())
    assert host["assemble"] < host["batch"] > 0


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
