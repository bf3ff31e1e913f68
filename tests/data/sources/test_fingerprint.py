"""The same files have the same fingerprint wherever they lie; any other number, name, size or label changes it."""

from __future__ import annotations

import os
import shutil
import unicodedata

import pytest

from sere_jax.data.sources.example import Entry, Fingerprint, fingerprint
from sere_jax.data.sources.open import folders, open_source

FILES = ("ant/1.jpg", "ant/2.jpg", "bee/caf\u00e9.png", "bee/deep/3.jpg")


def write(root, names=FILES):
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * (10 + number))
    return root


def of(spec) -> Fingerprint:
    return open_source(spec).fingerprint()


def test_files_are_the_same_at_another_path(tmp_path):
    first = of(f"folder:{write(tmp_path / 'a')}")
    # in another order, so that the file system lists them in another order too
    shutil.copytree(write(tmp_path / "b", FILES[::-1]), tmp_path / "c")
    assert of(f"folder:{write(tmp_path / 'elsewhere' / 'z')}") == first
    assert of(f"folder:{tmp_path / 'b'}") == of(f"folder:{tmp_path / 'c'}") != first  # sizes follow the order of writing
    assert first.count == 4 and len(first.digest) == 64


def test_decomposed_names_are_the_same_names_in_the_same_order(tmp_path):
    """As a folder looks that went through a file system of macOS: decomposed, caf\u00e9 would come before cafz, composed after it."""
    names = ("caf\u00e9/\u00e9.png", "caf\u00e9/f.png", "cafz/0.png")
    composed = open_source(f"folder:{write(tmp_path / 'nfc', names)}")
    decomposed = open_source(f"folder:{write(tmp_path / 'nfd', [unicodedata.normalize('NFD', name) for name in names])}")
    assert list(composed.listing()) == list(decomposed.listing())
    assert composed.fingerprint() == decomposed.fingerprint()
    assert [composed[i].data for i in range(3)] == [decomposed[i].data for i in range(3)]


@pytest.mark.parametrize("change", ["more", "fewer", "grown", "renamed", "moved"])
def test_every_change_of_the_listing_is_noticed(tmp_path, change):
    before = of(f"folder:{write(tmp_path)}")
    if change == "more":
        (tmp_path / "ant" / "9.jpg").write_bytes(b"")
    if change == "fewer":
        (tmp_path / "ant" / "2.jpg").unlink()
    if change == "grown":
        (tmp_path / "ant" / "2.jpg").write_bytes(b"x" * 99)
    if change == "renamed":
        (tmp_path / "ant" / "2.jpg").rename(tmp_path / "ant" / "3.jpg")
    if change == "moved":
        (tmp_path / "ant" / "2.jpg").rename(tmp_path / "bee" / "2.jpg")
    after = of(f"folder:{tmp_path}")
    assert after.digest != before.digest
    assert after.count - before.count == {"more": 1, "fewer": -1}.get(change, 0)


def test_names_tell_what_differs(tmp_path):
    before = list(open_source(f"folder:{write(tmp_path)}").listing())
    (tmp_path / "ant" / "0.jpg").write_bytes(b"")
    after = list(open_source(f"folder:{tmp_path}").listing())
    assert [entry.name for entry in after if entry.name not in {e.name for e in before}] == ["ant/0.jpg"]
    assert before[2] == Entry("bee/caf\u00e9.png", 12, 1)


def test_a_vanished_file_has_no_size(tmp_path):
    source = open_source(f"folder:{write(tmp_path)}")
    whole = source.fingerprint()
    (tmp_path / "ant" / "1.jpg").unlink()
    assert next(source.listing()).size == -1 and source.fingerprint() != whole


def test_lists_by_relative_and_absolute_paths(tmp_path):
    found = []
    for place in ("a", "b/c"):
        root = write(tmp_path / place)
        (root / "relative.txt").write_text("ant/1.jpg\tant\nbee/deep/3.jpg\tbee\n")
        (root / "absolute.txt").write_text(f"{root}/ant/1.jpg\tant\n{root}/bee/deep/3.jpg\tbee\n")
        (root / "labels.txt").write_text("ant/1.jpg\tant\nbee/deep/3.jpg\tbug\n")
        found.append([of(f"list:{root}/{name}.txt") for name in ("relative", "absolute", "labels")])
    assert found[0] == found[1]
    relative, absolute, labels = found[0]
    assert relative == absolute and relative.count == 2 and labels.digest != relative.digest


def test_a_changed_label_map_is_noticed_in_a_mixture_too(tmp_path):
    spec = f"masks:{write(tmp_path / 'maps', ('1.png', '2.png'))}:folder:{write(tmp_path / 'images', ('1.jpg', '2.jpg'))}"
    mixture = f"mix:{spec}|folder:{tmp_path / 'images'}"
    before = of(spec), of(mixture)
    (tmp_path / "maps" / "2.png").write_bytes(b"another size")
    assert of(spec) != before[0] and of(mixture) != before[1]
    assert folders(mixture) == [str(tmp_path / "images")] * 2


def test_classes_and_mixtures(tmp_path):
    root = write(tmp_path)
    (root / "classes.txt").write_text("bee\n")
    spec = f"classes:{root}/classes.txt:folder:{root}"
    bees = of(spec)
    assert bees.count == 2 and [e.name for e in open_source(spec).listing()] == ["bee/caf\u00e9.png", "bee/deep/3.jpg"]
    (root / "ant" / "more.jpg").write_bytes(b"")  # of another class
    assert of(spec) == bees
    mixed = of(f"mix:folder:{root}|{spec}")
    assert mixed.count == 7 and mixed != of(f"mix:{spec}|folder:{root}")
    assert mixed == of(f"mix:3*folder:{root}|1*{spec}")  # weights are the config's


def test_bundled_splits_differ_and_stay():
    assert of("bundled:gallery") == of("bundled:gallery") != of("bundled:query")
    source = open_source("bundled:gallery")
    entry = next(source.listing())
    assert (entry.name, entry.size, entry.label) == (source[0].name, len(source[0].data), source[0].label)


def test_names_that_are_not_utf8(tmp_path):
    with open(os.fsencode(tmp_path) + b"/caf\xe9.png", "wb") as file:
        file.write(b"x")
    latin = of(f"folder:{tmp_path}")
    os.rename(os.fsencode(tmp_path) + b"/caf\xe9.png", os.fsencode(tmp_path) + b"/caf\xe8.png")
    assert of(f"folder:{tmp_path}").digest != latin.digest


def test_nothing_runs_into_anything():
    """Names, classes and numbers are told apart, whatever they hold but NUL, which no name holds."""
    a, b = Entry("a", 1, -1), Entry("b", 1, -1)
    of_entries = [[a, b], [b, a], [a], [Entry("a", 1, 2)], [Entry("a", 12, -1)], [Entry("a\n", 1, -1), b], [Entry("ab", 1, -1)]]
    digests = [fingerprint(0, entries, ()).digest for entries in of_entries]
    digests += [fingerprint(0, (), classes).digest for classes in (["a", "b"], ["ab"], [])]
    assert len(set(digests)) == len(digests)
