"""What a bucket cannot be used for is refused in a sentence, before anything is asked of the bucket; what is no image there."""

from __future__ import annotations

import importlib.util

import pytest

from sere_jax.__main__ import main
from sere_jax.config.check import workdir_mistakes
from sere_jax.config.sources import source_mistakes
from sere_jax.data.sources import walk
from sere_jax.data.sources.open import SourceError, open_source

FORM = "expected folder:gs://BUCKET/NAME, list:gs://BUCKET/NAME/FILE or tfds:gs://BUCKET/NAME:SPLIT; LIST and DIR lie on a disk"


@pytest.mark.parametrize(
    "spec", ["gs://bucket/train", "bundled:gs://bucket/a", "classes:gs://bucket/list.txt:bundled", "masks:gs://b/m:folder:a"]
)
def test_what_is_not_read_from_a_bucket(spec):
    assert source_mistakes("data.source", spec) == [f"data.source: found {spec!r}, {FORM}"]
    with pytest.raises(SourceError) as error:
        open_source(spec)
    assert str(error.value) == f"source: found {spec!r}, {FORM}"


def test_other_stores_and_names_without_a_path():
    for spec, why in (
        ("folder:s3://bucket/a", "s3:// is not supported: mount the bucket"),
        ("tfds:gs://Bucket:train", "expected gs://BUCKET/NAME, with"),
        ("tfds:gs://b/set", "tfds:gs://BUCKET/NAME:SPLIT"),
    ):
        [line] = source_mistakes("data.source", spec)
        assert why in line
        with pytest.raises(SourceError, match=why):
            open_source(spec)


@pytest.mark.skipif(importlib.util.find_spec("gcsfs") is not None, reason="gcsfs is installed")
def test_without_gcsfs_the_line_says_what_to_install():
    [line] = source_mistakes("data.source", "mix:bundled|folder:gs://bucket/a")
    assert "'folder:gs://bucket/a', which needs gcsfs: pip install -r requirements-cloud.txt" in line
    with pytest.raises(SourceError, match="which needs gcsfs: pip install -r requirements-cloud.txt"):
        open_source("folder:gs://bucket/a")


def test_a_workdir_below_the_images_of_a_bucket_is_refused():
    sources = {"data.source": "mix:folder:gs://bucket/a/|folder:/b"}
    assert workdir_mistakes("/bucket/a/run", sources) == []
    if importlib.util.find_spec("gcsfs") is not None:  # else no workdir is in a bucket
        assert workdir_mistakes("gs://bucket/ab", sources) == []
        [line] = workdir_mistakes("gs://bucket//a/run", sources)
        assert line.endswith("expected a directory that is not below gs://bucket/a/, whose images data.source reads")


def test_reports_and_lists_of_runs_in_another_store(capsys):
    why = "expected a directory or gs://BUCKET/NAME; s3:// is not supported: mount the bucket and name the mount, as in /mnt/bucket/a\n"
    for arguments, named in (
        (["report", "--workdir=s3://bucket/a"], "--workdir: found s3://bucket/a, "),
        (["report", "--workdir=a", "--output=s3://bucket/a"], "--output: found s3://bucket/a, "),
        (["runs", "s3://bucket/a"], "s3://bucket/a: "),
    ):
        assert main(arguments) == 2
        assert capsys.readouterr().err == named + why


@pytest.mark.parametrize("gcsfs", [True, False])
def test_a_set_is_not_prepared_into_a_bucket(tmp_path, monkeypatch, capsys, gcsfs):
    monkeypatch.chdir(tmp_path)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: gcsfs or None if name == "gcsfs" else find_spec(name, *rest))
    assert main(["prepare", "--source=bundled", "--output=gs://bucket/set"]) == 2
    assert capsys.readouterr().err.endswith("expected a directory; copy the set into the bucket when it is prepared\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("written", "output"),
    [
        ("run/config.json run/metrics.jsonl", "run is the workdir of a run"),
        ("config.json checkpoints/3/x run/0.png", " is the workdir of a run"),
        ("run/figures/attention.png", "run/figures is the figures of an evaluation"),
        ("figures/attention.png figures/mine.png eval/figures.json", "figures is the figures of an evaluation"),
        ("run/figures/knn-vits.png run/eval/knn.json", "run/figures is the figures of an evaluation"),
        (
            "run/eval/upernet-t-predictions/0.png run/eval/upernet.json",
            "run/eval/upernet-t-predictions is the predictions of an evaluation",
        ),
        ("run/config.json run/figures/0.png figures/mine/pca.png eval/a-predictions/0.png", ""),  # somebody's own names
    ],
)
def test_what_a_run_wrote_among_images_is_refused_as_on_a_disk(written, output, tmp_path):
    paths = ["a/0.png", "b/0.png", *written.split()]
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    if not output:
        assert walk.arranged(paths) == walk.walk(str(tmp_path))
        return
    with pytest.raises(SourceError, match=f"^{output}, no images; expected a workdir outside of the images"):
        walk.arranged(paths)
    with pytest.raises(SourceError, match=f"is{output.partition(' is')[2]}, no images"):
        walk.walk(str(tmp_path))
