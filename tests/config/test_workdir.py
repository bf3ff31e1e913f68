"""Where a workdir may lie."""

from __future__ import annotations

import importlib.util

import pytest
from ml_collections import ConfigDict

from configs import common
from sere_jax.config import check as rules
from sere_jax.writing import WriteError, destination


def test_a_workdir_is_a_directory(tmp_path):
    assert rules.workdir_mistakes(None) == rules.workdir_mistakes("runs/a") == []
    [line] = rules.workdir_mistakes(f"{__file__}/runs/a")
    assert line == f"--workdir: found '{__file__}/runs/a', expected a directory, there or not; {__file__} is a file"
    assert rules.workdir_mistakes(str(tmp_path / "there" / "or" / "not")) == []


def test_a_workdir_in_a_bucket_needs_gcsfs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == "gcsfs" else None)
    assert rules.workdir_mistakes("gs://bucket/runs/a") == []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    [line] = rules.workdir_mistakes("gs://bucket/runs/a")
    assert line.startswith("--workdir: found 'gs://bucket/runs/a', which needs gcsfs: pip install -r requirements-cloud.txt.")
    assert line.endswith("as in /mnt/bucket/runs/a")


@pytest.mark.parametrize("address", ["s3://bucket/a", "hf://user/a", "http://host/a"])
def test_other_addresses_are_refused_with_what_to_do(address: str):
    [line] = rules.workdir_mistakes(address)
    scheme, rest = address.split("://")
    assert line == (
        f"--workdir: found '{address}', expected a directory or gs://BUCKET/NAME; {scheme}:// is not supported: "
        f"mount the bucket and name the mount, as in /mnt/{rest}"
    )


@pytest.mark.parametrize("address", ["gs://", "gs://bucket", "gs://bucket/", "gs://Bucket/a", "gs://b/a", "gs://bucket/a/../b"])
def test_an_address_without_a_name_is_refused(address: str):
    [line] = rules.workdir_mistakes(address)
    assert "expected gs://BUCKET/NAME" in line


@pytest.mark.parametrize("address", ["gs:/bucket/a", "GS://bucket/a", " gs://bucket/a", "S3:/bucket/a", "file:/a"])
def test_an_address_that_is_misspelt_is_no_directory(address: str):
    """A run would write to the disk of each machine, below a directory `gs:`."""
    [line] = rules.workdir_mistakes(address)
    assert line == f"--workdir: found {address!r}, expected a directory or gs://BUCKET/NAME; a directory of that name is ./{address}"
    assert rules.workdir_mistakes(f"./{address}") == []
    with pytest.raises(WriteError, match="expected a directory or gs://BUCKET/NAME; a directory of that name is"):
        destination(address)


@pytest.mark.parametrize("address", ["gs://bucket/run*", "gs://bucket/a?", "gs://bucket/[ab]/c", "gs://bucket/a\n"])
def test_an_address_is_no_pattern(address: str):
    """gcsfs deletes all that a pattern matches: other runs."""
    [line] = rules.workdir_mistakes(address)
    assert "without the signs of patterns" in line


@pytest.mark.parametrize("form", ["folder:{}", "classes:list.txt:folder:{}", "mix:2*bundled|1*folder:{}"])
def test_a_workdir_below_a_folder_of_images_is_refused(tmp_path, form: str):
    images = tmp_path / "images"
    images.mkdir()
    (tmp_path / "link").symlink_to(images)
    config = common.pretrain()
    config.data.source, config.eval.gallery = "bundled", form.format(images)
    sources = rules.sources(config)
    for workdir in (images, images / "run", tmp_path / "link" / "runs" / "a"):
        [line] = rules.workdir_mistakes(str(workdir), sources)
        assert line == f"--workdir: found '{workdir}', expected a directory that is not below {images}, whose images eval.gallery reads"
    for workdir in (tmp_path, tmp_path / "images2", tmp_path / "run"):
        assert rules.workdir_mistakes(str(workdir), sources) == []


@pytest.mark.parametrize("key", ["train", "validation", "test", "submission", "gallery", "query", "source"])
def test_a_workdir_below_the_images_of_an_evaluation_is_refused(tmp_path, key: str):
    sources = rules.sources(ConfigDict({"protocol": "linear", key: f"folder:{tmp_path}"}))
    [line] = rules.workdir_mistakes(str(tmp_path / "run"), sources)
    assert key in line


def test_a_workdir_in_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(rules.workdir_mistakes("~/photos/run", {"data.source": f"folder:{tmp_path}/photos"})) == 1
    assert len(rules.workdir_mistakes(str(tmp_path / "photos" / "run"), {"data.source": "folder:~/photos"})) == 1
