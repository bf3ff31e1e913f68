"""Images in a bucket: the same examples, order and fingerprint as on a disk, a cache that is checked, and mistakes in sentences."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from sere_jax import buckets
from sere_jax.__main__ import main
from sere_jax.data.batches.pipeline import train_batches
from sere_jax.data.crops.views import ViewRecipe
from sere_jax.data.sources import cache
from sere_jax.data.sources.cache import Cache, RemoteFiles
from sere_jax.data.sources.open import SourceError, open_source
from tests.data.images.images import encode, gradient

NAMES = ("bee/1.png", "bee/deep/2.png", "ant/x.png", "ant-lion/3.png", "caf\u00e9/e.png", "zoo/7.png", "zoo/8.png", "zoo/9.png")
WASTE = (".hidden/1.png", "__MACOSX/q.png", "ant/notes.txt", "ant/.x.png")


@pytest.fixture(scope="module")
def photos(server, tmp_path_factory) -> tuple[Path, str]:
    """The same files on a disk and in the bucket."""
    root = tmp_path_factory.mktemp("photos")
    for number, name in enumerate((*NAMES, *WASTE)):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(gradient(20 + number, 24, blue=number)))
    (root / "list.txt").write_text("zoo/7.png\tzoo\nbee/deep/2.png\tbee\n")
    buckets.put_tree(root, buckets.location("gs://bkt/photos"))
    return root, "gs://bkt/photos"


def _kept(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


@pytest.mark.parametrize("form", ["folder:{}", "list:{}/list.txt", "mix:folder:{0}|list:{0}/list.txt"])
def test_a_source_is_the_same_on_a_disk_and_in_a_bucket(photos, form):
    local, remote = (open_source(form.format(root)) for root in photos)
    assert remote.fingerprint() == local.fingerprint() and list(remote.listing()) == list(local.listing())
    assert remote.classes == local.classes and [len(remote), *map(remote.__getitem__, range(len(remote)))] == [
        len(local),
        *map(local.__getitem__, range(len(local))),
    ]
    assert len(list(remote.left_out())) == len(list(local.left_out()))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_batches_are_those_of_the_files_on_a_disk(photos, tmp_path, workers):
    recipe = ViewRecipe(global_size=8, local_count=0)
    with cache.using(str(tmp_path), 1.0):
        sources = [open_source(f"folder:{root}") for root in photos]
    batches = [
        list(train_batches(source, recipe=recipe, seed=3, batch_size=4, total_steps=3, prefetch=2, workers=workers)) for source in sources
    ]
    for local, remote in zip(*batches, strict=True):
        assert (local.global_views == remote.global_views).all() and (local.index == remote.index).all() and not remote.replaced.any()


def test_kept_files_are_read_without_the_bucket_and_damaged_ones_are_fetched_again(photos, server, tmp_path, caplog):
    with cache.using(str(tmp_path), 1.0):
        source = pickle.loads(pickle.dumps(open_source(f"folder:{photos[1]}")))
    source.read_ahead(range(len(source)))
    first = [source[index] for index in range(len(source))]
    before = server.requests()
    assert [source[index] for index in range(len(source))] == first and server.requests() == before
    assert len(_kept(tmp_path)) == len(NAMES)
    _kept(tmp_path)[3].write_bytes(b"damaged")
    assert [source[index] for index in range(len(source))] == first and server.requests() == before + 1
    assert "is damaged and is fetched again (1 so far)" in caplog.text
    assert [source[index] for index in range(len(source))] == first and server.requests() == before + 1


def test_the_cache_is_bounded_and_a_full_disk_is_no_end(photos, tmp_path, caplog, monkeypatch):
    with cache.using(str(tmp_path / "small"), 300e-9):  # GB: 300 bytes
        source = open_source(f"folder:{photos[1]}")
    examples = [source[index] for index in range(len(source))]
    kept = _kept(tmp_path / "small")
    assert 0 < len(kept) < len(NAMES) and sum(path.stat().st_size for path in kept) <= 300
    with cache.using(str(tmp_path / "full"), 1.0):
        source = open_source(f"folder:{photos[1]}")
    monkeypatch.setattr("sere_jax.data.sources.cache.os.replace", _full)
    assert [source[index] for index in range(len(source))] == examples
    assert caplog.text.count("no more files are kept there: No space left on device") == 1
    assert not _kept(tmp_path / "full")


def test_sources_share_the_bound_and_files_of_earlier_programs_make_room(photos, bucket, tmp_path, caplog, monkeypatch):
    buckets.put_tree(photos[0] / "zoo", buckets.location(f"{bucket}/zoo"))
    size = sum((photos[0] / name).stat().st_size for name in NAMES)
    for limit in (size - 1, size):  # of the zoo's three files, not all have room beside those of the first source
        monkeypatch.setattr(cache, "_planned", {})
        directory = tmp_path / str(limit)
        with cache.using(str(directory), limit * 1e-9):
            for spec in (f"folder:{photos[1]}", f"folder:{bucket}/zoo"):
                source = open_source(spec)
                assert len([source[index] for index in range(len(source))]) == len(source)
        assert sum(path.stat().st_size for path in _kept(directory)) <= limit
    before = _kept(directory)
    assert len(before) == len(NAMES) and "were removed" not in caplog.text
    os.utime(before[5], (1.0, 1.0))
    monkeypatch.setattr(cache, "_planned", {})  # a later program, which needs the zoo alone
    with cache.using(str(directory), size * 1e-9):
        source = open_source(f"folder:{bucket}/zoo")
        assert before[5] not in _kept(directory) and "not read for longest were removed" in caplog.text
        assert [source[index].label for index in range(len(source))] == [-1, -1, -1]
        left = set(_kept(directory))
        assert sum(path.stat().st_size for path in left) <= size and len(left - set(before)) == len(source)
        open_source(f"folder:{bucket}/zoo")
    assert set(_kept(directory)) == left  # a restart of the same program removes nothing


def _full(*_: str) -> None:
    raise OSError(28, "No space left on device")


def test_an_object_that_changes_after_the_listing_is_a_bad_image(bucket):
    buckets.put_bytes(buckets.location(f"{bucket}/1.png"), b"one")
    source = open_source(f"folder:{bucket}")
    buckets.put_bytes(buckets.location(f"{bucket}/1.png"), b"two")
    with pytest.raises(OSError, match="not those that were listed: it has changed since the start"):
        source[0]
    files = RemoteFiles(bucket, [buckets.Stored("gone.png", 3, -1), buckets.Stored("never.png", -1, -1)], Cache("", 0))
    for number in (0, 1):
        with pytest.raises(FileNotFoundError, match=r"\.png"):
            files.read(number)


def test_prepared_sets_are_copied_once(photos, server, tmp_path, caplog):
    pytest.importorskip("array_record")
    root, _ = photos
    assert main(["prepare", f"--source=folder:{root}", f"--output={tmp_path / 'set'}", "--workers=1"]) == 0
    buckets.put_tree(tmp_path / "set", buckets.location("gs://bkt/set"))
    local = open_source(f"tfds:{tmp_path / 'set'}:train")
    with pytest.raises(SourceError, match=r"is copied to this machine; expected --config.data.cache_dir=DIR"):
        open_source("tfds:gs://bkt/set:train")
    with cache.using(str(tmp_path / "cache"), 1e-9):  # the bound is on images; a prepared set is kept whole
        remote = open_source("tfds:gs://bkt/set:train")
        assert "copying" in caplog.text and remote.fingerprint() == local.fingerprint()
        assert [remote[i]._replace(name="") for i in range(len(remote))] == [local[i]._replace(name="") for i in range(len(local))]
        caplog.clear()
        shard = next(path for path in _kept(tmp_path / "cache") if "array_record" in path.name)
        content = shard.read_bytes()
        open_source("tfds:gs://bkt/set:train")
        assert "copying" not in caplog.text
        shard.write_bytes(b"cut short")
        open_source("tfds:gs://bkt/set:train")
        assert "copying 1 files" in caplog.text and shard.read_bytes() == content


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("folder:gs://nobucket/x", "there is no bucket gs://nobucket$"),
        ("folder:gs://bkt/nothing", "there are no objects below gs://bkt/nothing/; expected image files$"),
        ("list:gs://bkt/none.txt", "the list 'gs://bkt/none.txt' cannot be read: No such file"),
        ("folder:s3://bkt/x", "s3:// is not supported: mount the bucket"),
        ("masks:gs://bkt/maps:folder:/x", "expected folder:gs://BUCKET/NAME"),
    ],
)
def test_mistakes_are_sentences(server, spec, message):
    with pytest.raises(SourceError, match=message):
        open_source(spec)


def test_a_bucket_that_may_not_be_listed_and_a_cache_that_cannot_be_written(photos, server, tmp_path):
    server.fail(403, 1)
    with pytest.raises(SourceError, match="gs://bkt cannot be listed: Forbidden.*expected credentials that may list it"):
        open_source(f"folder:{photos[1]}")
    (tmp_path / "file").touch()
    with pytest.raises(SourceError, match="nothing can be written to the cache directory"), cache.using(str(tmp_path / "file"), 1.0):
        open_source(f"folder:{photos[1]}")


@pytest.mark.parametrize("ranges", [True, False])
def test_a_listing_of_several_pages_in_ranges_and_by_a_store_that_ignores_them(server, bucket, tmp_path, ranges):
    names = sorted(["b & c+d/é%20.png", "b & c+d/ü.png", *(f"a/{number:08d}.jpg" for number in range(30)), "z.png"])
    for name in (*names, ".marker"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"123456789" if name == "z.png" else name.encode())
    buckets.put_tree(tmp_path, buckets.location(bucket))
    buckets.put_bytes(buckets.location(f"{bucket}x"), b"a neighbour with the same beginning")
    server.pages(4, ranges=ranges)
    listed = buckets.stored(buckets.location(bucket))
    assert [item.name for item in listed] == [".marker", *names]
    assert [item.size for item in listed[1:-1]] == [len(name.encode()) for name in names[:-1]]
    assert listed[-1] == ("z.png", 9, 0xE3069283)  # the check value of CRC-32C


def test_folders_that_a_console_made_and_objects_without_a_checksum(monkeypatch):
    page = {"items": [{"name": "p/", "size": "0"}, {"name": "p/a.png", "size": "2", "crc32c": "AAAAAQ=="}]}
    page["items"] += [{"name": "p/d/", "size": "0"}, {"name": "p/d/c.png", "size": "4"}]

    class Fake:
        def call(self, *_: str, **__: object) -> dict:
            return page

    monkeypatch.setattr(buckets, "_filesystem", Fake)
    assert buckets.stored(buckets.location("gs://bkt/p")) == [("a.png", 2, 1), ("d/c.png", 4, -1)]
