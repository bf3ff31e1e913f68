"""Which files a folder lists, which it counts, and how lists of names are read."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from sere_jax.data.sources.folder import read_file
from sere_jax.data.sources.lists import read_lines, read_names
from sere_jax.data.sources.open import SourceError, open_source
from tests.data.images.images import encode, gradient

PICTURE = encode(gradient(4, 4))


def put(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(PICTURE)
    return f"folder:{root}"


def names(source):
    return [source[i].name for i in range(len(source))]


def test_files_that_are_not_read_are_counted_and_told(tmp_path, caplog):
    source = open_source(put(tmp_path, "a/1.jpg", "a/1.heic", "a/2.HEIC", "a/n1", "b/1.jfif", "b/notes.txt"))
    assert names(source) == ["a/1.jpg", "b/1.jfif"] and source.classes == ("a", "b")
    (note,) = source.notes()
    assert note == "4 files are not read as images: 2 .heic, 1 .txt, 1 without an extension"
    assert note in caplog.text
    assert sorted(os.path.basename(path) for path in source.left_out()) == ["1.heic", "2.HEIC", "n1", "notes.txt"]


def test_what_is_no_plain_file_is_refused_and_leaves_no_descriptor_open(tmp_path):
    (tmp_path / "directory.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    before = len(os.listdir("/proc/self/fd"))
    for name in ("directory.jpg", "pipe.jpg"):
        with pytest.raises(OSError, match="not a plain file|s a directory"):
            read_file(str(tmp_path / name))
    assert len(os.listdir("/proc/self/fd")) == before


def test_arrays_beside_a_picture_are_counted(tmp_path):
    source = open_source(put(tmp_path, "preview.png", *(f"{i}.npy" for i in range(8))))
    assert names(source) == ["preview.png"] and "8 .npy" in source.notes()[0]


@pytest.mark.parametrize("waste", ["@eaDir", "__MACOSX", "lost+found", ".ipynb_checkpoints", ".thumbnails", "$RECYCLE.BIN"])
def test_directories_of_systems_are_skipped(tmp_path, waste):
    source = open_source(put(tmp_path, "cat/1.jpg", f"cat/{waste}/1.jpg", f"{waste}/2.jpg"))
    assert names(source) == ["cat/1.jpg"] and source.notes() == () and source.classes == ("cat",)


def test_classes_that_are_splits_are_pointed_out(tmp_path):
    (note,) = open_source(put(tmp_path, "train/cat/1.jpg", "val/cat/2.jpg")).notes()
    assert "look like splits" in note and f"folder:{tmp_path}/train" in note
    assert open_source(put(tmp_path, "cat/1.jpg")).notes() == ()


@pytest.mark.parametrize(
    ("folders", "first"),
    [
        (["train2017", "val2017", "test2017", "unlabeled2017"], "test2017"),  # COCO
        (["Training Set", "test_set"], "Training Set"),
        (["TrainImages", "ValidationImages"], "TrainImages"),
        (["train"], "train"),
        (["data/train", "data/val"], "data/train"),
        (["archive/images/train-split/cat", "archive/images/test-split/cat"], "archive/images/test-split"),
        (["cat", "dog"], ""),
        (["train", "boat"], ""),  # vehicles
        (["data/cat", "data/dog"], ""),
        (["dataset", "images"], ""),
        (["cat/train", "dog/train"], ""),  # two classes
    ],
)
def test_folders_that_look_like_splits(tmp_path: Path, folders: list[str], first: str):
    notes = open_source(put(tmp_path, *(f"{folder}/1.jpg" for folder in folders))).notes()
    assert [note.partition("as in ")[2] for note in notes] == ([f"folder:{tmp_path}/{first}"] if first else [])


def test_a_directory_is_listed_once_however_many_links_lead_to_it(tmp_path):
    spec = put(tmp_path / "set", "b/1.jpg", "b/deep/2.jpg")
    put(tmp_path / "out", "3.jpg")
    for link, target in (("a", "set/b"), ("c", "out"), ("d", "out"), ("b/up", "set")):
        (tmp_path / "set" / link).symlink_to(tmp_path / target)
    assert names(open_source(spec)) == ["b/1.jpg", "b/deep/2.jpg", "c/3.jpg"]  # by its own path, else by the first link


def test_a_link_into_a_hidden_store_is_followed(tmp_path):
    spec = put(tmp_path, ".store/1.jpg")
    (tmp_path / "cat").symlink_to(tmp_path / ".store")
    assert names(open_source(spec)) == ["cat/1.jpg"]


def test_deep_directories(tmp_path):
    """Deeper than Python's recursion limit of 1,000."""
    directory = f"{tmp_path}"
    for _ in range(1200):
        directory += "/d"
        os.mkdir(directory)
    with open(f"{directory}/1.jpg", "wb") as file:
        file.write(PICTURE)
    try:
        assert len(open_source(f"folder:{tmp_path}")) == 1
    finally:  # pytest's own cleaning cannot descend so far
        os.unlink(f"{directory}/1.jpg")
        os.removedirs(directory)
        tmp_path.mkdir(exist_ok=True)


def test_class_names_are_whole_lines(tmp_path):
    spec = put(tmp_path / "d", "dog/0.png", "dog house/0.png", "African lion/0.png", "#1/0.png", "# 2/0.png")
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf# comment\r\ndog house \r\n\r\nAfrican lion\r\n#1\r\n\\# 2\r\n")
    source = open_source(f"classes:{tmp_path}/list.txt:{spec}")
    assert source.classes == ("dog house", "African lion", "#1", "# 2")
    assert sorted(names(source)) == ["# 2/0.png", "#1/0.png", "African lion/0.png", "dog house/0.png"]
    (tmp_path / "list.txt").write_text("dog 12\n")
    with pytest.raises(SourceError, match="their first words are classes"):
        open_source(f"classes:{tmp_path}/list.txt:{spec}")


def test_lines(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"a b\n#\n# x\n#x\n\\# y\n\\\\# z\n\\w\ncaf\xe9\n  \nlast")
    assert read_lines("s", str(tmp_path / "list.txt")) == ["a b", "#x", "# y", "\\# z", "\\w", "caf\udce9", "last"]
    for data, message in (
        (b"a\0b\n", "line 1 of .* NUL"),
        (b"\xff\xfea\0", "UTF-16"),
        (b"\n", "empty list"),
        (b"a\na\n", "a more than once"),
    ):
        (tmp_path / "list.txt").write_bytes(data)
        with pytest.raises(SourceError, match=message):
            read_names("s", str(tmp_path / "list.txt"))


def test_label_maps_of_a_folder(tmp_path):
    put(tmp_path / "images", "a/1.png", "a/2.png")
    for number in (1, 2):
        (tmp_path / "maps" / "a").mkdir(parents=True, exist_ok=True)
        (tmp_path / "maps" / "a" / f"{number}.png").write_bytes(encode(np.full((4, 4), number, np.uint8)))
    spec = f"masks:{tmp_path}/maps:folder:{tmp_path}/images"
    source = open_source(spec)
    assert source[1].annotation.label_map == (tmp_path / "maps" / "a" / "2.png").read_bytes() and source.map_classes == ()
    before = source.fingerprint()
    (tmp_path / "maps" / "a" / "2.png").write_bytes(b"x")
    assert source.fingerprint() != before
    unnamed = source.fingerprint()
    (tmp_path / "maps" / "classes.txt").write_text("sky\nroad\n")
    assert open_source(spec).map_classes == ("sky", "road") and open_source(spec).fingerprint() != unnamed
    (tmp_path / "maps" / "a" / "1.png").unlink()
    with pytest.raises(SourceError, match="1 of 2 images have no label map"):
        open_source(spec)
    with pytest.raises(SourceError, match="expected masks:DIR:folder:IMAGES"):
        open_source(f"masks:{tmp_path}/maps:bundled")
