"""Images in a bucket are refused in a sentence, before anything is asked of the bucket."""

from __future__ import annotations

import pytest

from sere_jax.__main__ import main
from sere_jax.config.sources import source_mistakes
from sere_jax.data.sources.open import SourceError, open_source


@pytest.mark.parametrize(
    "spec", ["folder:gs://bucket/train", "mix:2*bundled|1*folder:s3://bucket/a", "classes:list.txt:folder:gs://bucket/a"]
)
def test_images_in_a_bucket_are_refused(spec):
    [line] = source_mistakes("data.source", spec)
    reason = "names a bucket; expected images on this machine: copy them to its disk, or mount the bucket (docs/pods.md)"
    assert line == f"data.source: found {spec!r}, which {reason}"
    with pytest.raises(SourceError) as error:
        open_source(spec)
    assert str(error.value) == f"source {spec!r} {reason}"


def test_reports_of_runs_in_a_bucket_say_what_to_do(capsys):
    assert main(["report", "--workdir=gs://bucket/run"]) == 2
    expected = "--workdir: found gs://bucket/run, expected directories: gcloud storage cp -r gs://bucket/run DIR, and report DIR\n"
    assert capsys.readouterr().err == expected
    assert main(["runs", "gs://bucket/runs"]) == 2


def test_a_set_is_not_prepared_into_a_bucket(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", "--source=bundled", "--output=gs://bucket/set"]) == 2
    assert capsys.readouterr().err.endswith("expected a directory; copy the set into the bucket when it is prepared\n")
    assert not list(tmp_path.iterdir())
