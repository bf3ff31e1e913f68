from __future__ import annotations

import io
import json

import numpy as np
import pytest
import rich.console

from sere_jax import __main__ as front
from sere_jax.commands import data_check
from tests.data.images.images import MemorySource, encode, gradient
from tests.full_disk import no_file_above


@pytest.mark.parametrize("workers", [1, 3])
def test_a_report_names_what_cannot_be_read(workers):
    report = data_check.check(MemorySource(40, bad=[4, 11], missing=[30]), workers=workers)
    assert [item.position for item in report.bad] == [4, 11, 30] and report.images == 40
    assert [item.position for item in report.good] == [i for i in range(40) if i not in (4, 11, 30)]
    facts = report.as_json()
    assert facts["unreadable"] == 3 and facts["errors"][2] == {"index": 30, "name": "item 30", "error": "no file 30"}
    assert facts["shorter_side"]["least"] == 20 and facts["longer_side"]["most"] == 34


def folder(path, *, damaged=()):
    for name in ("cat", "dog"):
        (path / name).mkdir()
        for i in range(3 if name == "cat" else 2):
            data = encode(gradient(20 + i, 30), "JPEG")
            (path / name / f"{i}.jpg").write_bytes(data[:100] if (name, i) in damaged else data)
    return f"--source=folder:{path}"


def test_the_program_on_good_and_bad_folders(tmp_path, capsys):
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.mkdir(), bad.mkdir()
    assert data_check.main([folder(good), "--workers=2"]) == 0
    shown = capsys.readouterr().out
    assert "0 (0.00%)" in shown and "2, of 2 to 3 readable images" in shown
    assert data_check.main([folder(bad, damaged=[("cat", 1)]), f"--json={tmp_path / 'report.json'}"]) == 1
    assert "cat/1.jpg" in capsys.readouterr().out
    assert json.loads((tmp_path / "report.json").read_text())["errors"][0]["name"] == "cat/1.jpg"
    assert data_check.main([f"--source=folder:{bad}", "--json=-"]) == 1
    assert json.loads(capsys.readouterr().out)["images"] == 5  # nothing but JSON


def test_a_full_disk_is_told_before_the_images_are_read(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    arguments = [folder(tmp_path / "images"), f"--json={tmp_path / 'out' / 'report.json'}"]
    with no_file_above(0):
        assert front.main(["check", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"check: {tmp_path / 'out'}: nothing can be written there (File too large)")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("count", "told"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (96_700, "96.7 kB"),
        (999_499, "999 kB"),
        (999_600, "1 MB"),
        (1_000_000, "1 MB"),
        (147_900_000_000, "148 GB"),
        (12_340_000_000_000, "12.3 TB"),
    ],
)
def test_amounts_of_data_in_the_unit_that_fits(count: int, told: str):
    good = [data_check.Checked(0, "a.jpg", -1, count, 5, 5, "")]
    screen = rich.console.Console(file=io.StringIO(), width=100)
    data_check.show(data_check.Report("folder:x", 1, [], good, ()), screen)
    assert f"1, {told} " in screen.file.getvalue()


def test_images_of_other_channels(tmp_path, capsys):
    for number, bands in enumerate((5, 5, 4)):
        np.save(tmp_path / f"{number}.npy", np.ones((6, 7, bands), np.float32))
    source = f"--source=folder:{tmp_path}"
    assert data_check.main([source, "--json=-"]) == 1 and json.loads(capsys.readouterr().out)["unreadable"] == 3
    assert data_check.main([source, "--channels=5", "--value_range", "0", "2", "--json=-"]) == 1
    assert json.loads(capsys.readouterr().out)["errors"][0]["name"] == "2.npy"


def test_a_source_that_is_not_there(capsys):
    assert data_check.main(["--source=folder:/nowhere/at all"]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_names_that_cannot_be_printed_and_many_errors():
    source = MemorySource(30, bad=range(30))
    report = data_check.check(source)
    odd = report._replace(bad=[report.bad[0]._replace(name="caf\udce9\n[red]"), *report.bad[1:]])
    console = rich.console.Console(file=io.StringIO(), width=120)
    data_check.show(odd, console)
    shown = console.file.getvalue()
    assert "caf\\udce9\\n[red]" in shown and "10 more" in shown
    json.dumps(odd.as_json()).encode()
