"""Single objects in a bucket: whole, created once, tried again, and an OSError in the end."""

from __future__ import annotations

import json
import time

import pytest

from sere_jax import buckets
from sere_jax.__main__ import main
from sere_jax.data.sources.open import SourceError, open_source
from sere_jax.reporting import records
from sere_jax.reporting.records import BucketRecords
from sere_jax.train.lock import WorkdirError, locked
from sere_jax.writing import WriteError, place, replacing, writing_to
from tests.reporting import made_runs


def test_objects_are_put_whole_and_read_back(bucket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = place(f"{bucket}/run/table.json")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert not path.exists() and not path.parent.is_dir()
    with replacing(path) as temporary:
        temporary.write_text("whole")
    assert path.read_text() == "whole" and [child.name for child in path.parent.iterdir()] == ["table.json"]
    with buckets.local_copy(path) as copy:
        assert copy.name == "table.json" and copy.read_text() == "whole"
    assert not copy.exists() and not list(tmp_path.iterdir())  # nothing was written to a local directory named gs:
    path.write_text("newer, by another writer")
    assert path.read_text() == "newer, by another writer" and path.stat().length == 24  # listings are not kept


def test_an_object_is_created_once(bucket):
    path = place(f"{bucket}/once")
    assert buckets.create(path, b"first") and not buckets.create(path, b"second")
    assert path.read_bytes() == b"first"


def test_a_write_that_fails_is_tried_again_and_then_is_an_os_error(bucket, server):
    path = place(f"{bucket}/object")
    server.fail(503, 1, method="POST")
    buckets.put_bytes(path, b"x")  # after a pause of about a second
    assert server.left() == 0 and path.read_bytes() == b"x"
    server.fail(403, 1, method="POST")
    with pytest.raises(OSError, match=f"Forbidden.*on request.*{path.name}"):
        buckets.put_bytes(path, b"y")
    assert path.read_bytes() == b"x"
    server.fail(403, 9, method="POST")
    with pytest.raises(WriteError, match=f"^{path.parent}/run: nothing can be written there \\(Forbidden"), writing_to(path.parent / "run"):
        pass


def test_a_bucket_that_is_not_there_is_named(server, tmp_path, capsys):
    path = place("gs://nobucket/run/object")
    (tmp_path / "file").touch()
    for write in (lambda: buckets.put_bytes(path, b"x"), lambda: buckets.put(tmp_path / "file", path), lambda: buckets.create(path, b"x")):
        with pytest.raises(FileNotFoundError) as raised:
            write()
        assert raised.value.strerror == "there is no bucket gs://nobucket"
    with pytest.raises(WriteError, match="^gs://nobucket/run: .*\\(there is no bucket gs://nobucket\\); expected"), writing_to(path.parent):
        pass
    assert main(["runs", "gs://nobucket/runs"]) == 2
    assert capsys.readouterr().err == "gs://nobucket/runs cannot be read: there is no bucket gs://nobucket\n"


@pytest.mark.parametrize(("status", "passes"), [(503, True), (429, True), (403, False), (400, False)])
def test_what_may_pass_is_an_outage(server, bucket, monkeypatch, status, passes):
    """A start that meets one ends with exit code 1: the templates start it again, which they do not after a mistake."""
    from gcsfs.retry import HttpError  # reads the environment, which is the emulator's by now

    def refuse() -> None:
        raise HttpError({"code": status, "message": "said by the store"})

    monkeypatch.setattr(buckets, "_filesystem", refuse)  # after gcsfs has repeated the request
    with pytest.raises(WorkdirError, match="said by the store") as raised, locked(f"{bucket}/run"):
        pass
    assert buckets.is_outage(raised.value) == passes
    with pytest.raises(SourceError, match="said by the store") as refused:
        open_source(f"folder:{bucket}/images")
    assert buckets.is_outage(refused.value) == passes


def test_records_are_parts_that_are_joined_on_reading(bucket):
    directory = place(f"{bucket}/run")
    first = BucketRecords(directory, after=0)
    for step in (10, 20):
        first.write(step, {"loss": float(step)})
    assert records.read(directory) == []  # nothing is acknowledged before a checkpoint
    first.flush()
    first.write(20, {"top1": 0.5})  # the evaluation of a step joins its line, though it has been put
    first.write(30, {"loss": 30.0})
    first.flush()
    first.write(40, {"loss": 40.0})
    first.flush()  # a checkpoint of step 30 follows; killed without `close`
    assert [record["step"] for record in records.read(directory)] == [10, 20, 30, 40]
    second = BucketRecords(directory, after=30)
    assert [child.name for child in directory.iterdir()] == ["metrics.jsonl"]
    second.write(30, {"top1": 0.75})
    second.write(40, {"loss": 4.0, "bad": float("nan")})
    second.close()
    read = records.read(directory)
    assert [(r["step"], r.get("loss"), r.get("top1")) for r in read] == [(10, 10, None), (20, 20, 0.5), (30, 30, 0.75), (40, 4, None)]
    assert read[-1]["bad"] is None and (directory / "metrics.jsonl").read_text().count("\n") == 4


def test_a_part_that_cannot_be_put_is_put_later(bucket, server):
    directory = place(f"{bucket}/run")
    log = BucketRecords(directory, after=0)
    log.write(1, {"loss": 1.0})
    server.fail(403, 1, method="POST")
    with pytest.raises(OSError, match="Forbidden"):
        log.flush()
    log.write(2, {"loss": 2.0})
    log.flush()
    assert [record["step"] for record in records.read(directory)] == [1, 2]


def test_runs_in_a_bucket_are_listed_and_reported(bucket, server, tmp_path, capsys, monkeypatch):
    """One that is killed has its newest lines in a part."""
    monkeypatch.setenv("COLUMNS", "200")
    made = made_runs.workdir(tmp_path / "runs" / "dino", steps=30)
    part = json.dumps({"step": 35, "time": time.time() - 300, "loss": 5.0625})
    (made / "metrics-000000000035.jsonl").write_text(f"{part}\n")
    (made / "eval" / "bad.json").write_text("{")
    made_runs.workdir(made / "eval" / "pruned")
    buckets.put_tree(tmp_path / "runs", place(f"{bucket}/runs"))
    assert main(["runs", f"{bucket}/runs"]) == 0
    shown, errors = capsys.readouterr()
    assert "dino" in shown and "35 of 40" in shown and "logistic" in shown and "last line 5 min ago" in shown and "pruned" not in shown
    assert errors.startswith(f"cannot be read: {bucket}/runs/dino/eval/bad.json: ")
    assert main(["report", f"--workdir={bucket}/runs/dino,{made}"]) == 0
    page = (place(bucket) / "runs" / "dino" / "report.html").read_text()
    assert page.count("data:image/") == 2 and "dino [1] 5.062" in page and "dino [2] 5.062" in page  # a figure and the last loss of each
    for arguments in (["runs", f"{bucket}/none"], ["report", f"--workdir={bucket}/none"]):
        assert main(arguments) in (1, 2) and f"{bucket}/none" in capsys.readouterr().err
    server.fail(403, 1)
    assert main(["runs", f"{bucket}/runs"]) == 2 and capsys.readouterr().err.startswith(f"{bucket}/runs cannot be read: Forbidden")


def test_a_run_that_was_copied_out_of_a_bucket_goes_on_with_all_of_its_lines(tmp_path):
    for name, step in (("metrics.jsonl", 1), ("metrics-000000000002.jsonl", 2), ("metrics-000000000003.jsonl", 3)):
        (tmp_path / name).write_text(json.dumps({"step": step, "time": 0.0, "loss": 4.0}) + "\n")
    assert [record["step"] for record in records.read(tmp_path)] == [1, 2, 3]
    log = records.Records(tmp_path, after=2)
    log.write(4, {"loss": 1.0})
    log.close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert [record["step"] for record in records.read(tmp_path)] == [1, 2, 4]
