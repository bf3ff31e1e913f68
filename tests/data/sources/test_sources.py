from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from sere_jax.config.cross import source_mistakes
from sere_jax.data.sources.open import SourceError, open_source
from tests.data.images.images import encode, gradient

PICTURE = encode(gradient(4, 4))


def make(root, *paths):
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(PICTURE + path.encode())
    return open_source(f"folder:{root}")


def names(source):
    return [source[i].name for i in range(len(source))]


def test_a_flat_folder_has_no_labels_and_a_fixed_order(tmp_path):
    source = make(tmp_path, "b.JPG", "a.png", "c.webp", "notes.txt", ".hidden.png", ".cache/x.png")
    assert names(source) == ["a.png", "b.JPG", "c.webp"]
    assert source.classes == () and [source[i].label for i in range(3)] == [-1, -1, -1]
    assert source[0].data == PICTURE + b"a.png"
    assert source.spec == f"folder:{tmp_path}"


def test_first_level_folders_are_the_labels_at_any_depth(tmp_path):
    source = make(tmp_path, "dog/2.png", "dog/deep/er/1.png", "cat/z.png", "cat/.git/no.png")
    (tmp_path / "empty").mkdir()
    assert source.classes == ("cat", "dog")
    assert [(source[i].name, source[i].label) for i in range(3)] == [
        (os.path.join("cat", "z.png"), 0),
        (os.path.join("dog", "2.png"), 1),
        (os.path.join("dog", "deep", "er", "1.png"), 1),
    ]


def test_images_in_both_places_are_refused(tmp_path):
    with pytest.raises(SourceError, match="2 images lie in .* itself and 1 in its sub-folders"):
        make(tmp_path, "a.png", "b.png", "cat/c.png")


def test_links_are_followed_but_not_in_circles(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.png").write_bytes(PICTURE)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "cats").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "loop").symlink_to(tmp_path / "real")
    assert names(open_source(f"folder:{tmp_path / 'set'}")) == [os.path.join("cats", "a.png")]


def test_a_source_survives_pickling(tmp_path):
    source = make(tmp_path, "cat/a.png", "dog/b.png")
    again = pickle.loads(pickle.dumps(source))
    assert [again[i] for i in range(2)] == [source[i] for i in range(2)] and again.classes == source.classes


def test_a_vanished_file_is_an_os_error(tmp_path):
    source = make(tmp_path, "a.png")
    (tmp_path / "a.png").unlink()
    with pytest.raises(OSError):
        source[0]


def test_missing_directories_name_the_nearest(tmp_path):
    (tmp_path / "imagenet" / "train").mkdir(parents=True)
    with pytest.raises(SourceError, match=r"does not exist.*did you mean .*imagenet.train\?"):
        open_source(f"folder:{tmp_path}/imagnet/train")
    with pytest.raises(SourceError, match=r"did you mean .*train\?"):
        open_source(f"folder:{tmp_path}/imagenet/trian")
    with pytest.raises(SourceError, match="no image files"):
        open_source(f"folder:{tmp_path}")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SourceError, match="is a file"):
        open_source(f"folder:{tmp_path}/file")
    with pytest.raises(SourceError, match="names no directory"):
        open_source("folder:")


@pytest.mark.parametrize(("there", "written"), [("opt", "nope"), ("snap", "nope"), ("train", "photos")])
def test_a_directory_that_is_hardly_like_it_is_not_suggested(tmp_path, there, written):
    (tmp_path / there).mkdir()
    with pytest.raises(SourceError, match="does not exist") as error:
        open_source(f"folder:{tmp_path}/{written}")
    assert "did you mean" not in str(error.value)


def listed(root, text):
    for name in ("a.png", "b/c.dat", "d e.png"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(PICTURE + name.encode())
    (root / "list.txt").write_bytes(text)
    return open_source(f"list:{root / 'list.txt'}")


def test_a_list_of_paths_keeps_its_order(tmp_path):
    source = listed(tmp_path, f"# a comment\nd e.png\r\n\nb/c.dat\n{tmp_path}/a.png\ngone.png\n".encode())
    source = pickle.loads(pickle.dumps(source))
    assert len(source) == 4 and source.classes == ()
    assert [source[i].data for i in range(3)] == [PICTURE + name for name in (b"d e.png", b"b/c.dat", b"a.png")]
    assert source[0].name == "d e.png" and source[0].label == -1 and source.labels().tolist() == [-1] * 4
    with pytest.raises(OSError):
        source[3]


def test_a_list_of_paths_with_classes_and_odd_names(tmp_path):
    odd = b"caf\xe9.png"
    with open(os.fsencode(tmp_path) + b"/" + odd, "wb") as file:
        file.write(PICTURE)
    source = listed(tmp_path, odd + b"\towl\na.png\tcat\nb/c.dat\towl\n")
    assert source.classes == ("cat", "owl") and [source[i].label for i in range(3)] == source.labels().tolist() == [1, 0, 1]
    assert source[0].data == PICTURE


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "names no file"),
        (b"# a\n#\n", "names no file"),
        (b"#a\n", "no such file; a comment begins"),
        (b"a.png\n\0\n", "line 2 of .* has a NUL"),
        (b"\xff\xfea\0", "is UTF-16"),
        (b"a.png\nb/c.dat\na.png\n", "names 'a.png' more than once"),
        (b"a.png\tcat\nb/c.dat\n", "1 of 2 lines have a class; expected all or none"),
        (b"a.png\tcat\towl\n", "expected a path, or a path, a tab and a class"),
        (b"a.png\t\n", "expected a path, or a path, a tab and a class"),
        (b"x.png\n", "its first file .*x.png' does not exist"),
    ],
)
def test_lists_that_cannot_be(tmp_path, text, message):
    with pytest.raises(SourceError, match=message):
        listed(tmp_path, text)


def test_a_list_that_is_not_there(tmp_path):
    with pytest.raises(SourceError, match=r"cannot be read: No such file"):
        open_source(f"list:{tmp_path}/none.txt")


def test_arrays_are_listed_where_there_are_no_other_images(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "x.NPY").write_bytes(b"1")
    assert names(open_source(f"folder:{tmp_path}")) == [os.path.join("cat", "x.NPY")]
    (tmp_path / "cat" / "y.png").write_bytes(b"2")
    assert names(open_source(f"folder:{tmp_path}")) == [os.path.join("cat", "y.png")]


def test_specs_of_no_known_kind(tmp_path):
    with pytest.raises(SourceError, match="did you mean 'bundled'"):
        open_source("bundle:train")
    with pytest.raises(SourceError, match=f"write 'folder:{tmp_path}'"):
        open_source(str(tmp_path))
    with pytest.raises(SourceError, match="expected one of train, gallery, query"):
        open_source("bundled:test")
    with pytest.raises(SourceError, match="of no known kind"):
        open_source("")


def test_predictions_of_an_evaluation_are_no_images(tmp_path):
    labels = tmp_path / "run" / "eval" / "upernet-teacher-predictions"
    labels.mkdir(parents=True)
    (labels / "0.png").write_bytes(PICTURE)
    assert len(open_source(f"folder:{tmp_path}")) == 1  # no report beside it: anybody's directory
    (labels.parent / "upernet.json").write_text("{}")
    with pytest.raises(SourceError, match="teacher-predictions' is the predictions of an evaluation, no images"):
        open_source(f"folder:{tmp_path}")


def test_a_folder_that_holds_what_a_run_wrote_is_refused(tmp_path: Path):
    """The figures of a run below the images would become a class of their own."""
    for name in ("a/0.png", "b/0.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert open_source(f"folder:{tmp_path}").classes == ("a", "b")
    figures = tmp_path / "run" / "figures"
    figures.mkdir(parents=True)
    (figures / "attention.png").touch()
    with pytest.raises(SourceError, match=r"run/figures' is the figures of an evaluation, no images"):
        open_source(f"folder:{tmp_path}")
    (figures / "0.png").touch()  # somebody's own figures
    assert open_source(f"folder:{tmp_path}").classes == ("a", "b", "run")
    (tmp_path / "run" / "config.json").touch()
    assert open_source(f"folder:{tmp_path}").classes == ("a", "b", "run")
    (tmp_path / "run" / "eval").mkdir()
    (tmp_path / "run" / "eval" / "figures.json").touch()  # beside a report, the foreign file changes nothing
    with pytest.raises(SourceError, match=r"run/figures' is the figures of an evaluation, no images"):
        open_source(f"folder:{tmp_path}")
    (figures / "attention.png").rename(figures / "knn-vits.png")
    assert open_source(f"folder:{tmp_path}").classes == ("a", "b", "run")
    (tmp_path / "run" / "eval" / "knn.json").touch()  # a confusion matrix is named after its protocol
    with pytest.raises(SourceError, match=r"run/figures' is the figures of an evaluation, no images"):
        open_source(f"folder:{tmp_path}/run/figures")
    (tmp_path / "run" / "checkpoints").mkdir()
    with pytest.raises(SourceError, match=r"/run' is the workdir of a run, no images; expected a workdir outside of the images"):
        open_source(f"folder:{tmp_path}")


@pytest.mark.parametrize(
    "spec", ["{}", "folder:{}", "list:{}", "classes:{}:bundled", "masks:{}:folder:photos", "tfds:{}:train", "tfds:./{}:train", "bundled:{}"]
)
def test_a_name_longer_than_the_system_allows_is_a_mistake_of_the_source(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(Path("photos"), "a.png")
    text = spec.format("a" * 300)
    with pytest.raises(SourceError):
        open_source(text)
    if not text.startswith("tfds:a"):  # may be the name of a set: known when it is opened
        assert source_mistakes("data.source", text)
