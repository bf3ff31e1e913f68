"""Some classes of a source, by a list: which images, which labels, and what is said about a wrong list."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from sere_jax.config import cross
from sere_jax.data.sources.example import Entry, Example, Source
from sere_jax.data.sources.open import SourceError, open_source
from sere_jax.data.sources.subset import Selection
from tests.data.images.images import encode, gradient

CLASSES = {"ant": 2, "bee": 3, "cow": 1, "doe": 2}


@pytest.fixture
def photos(tmp_path):
    for name, count in CLASSES.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(count):
            (tmp_path / "photos" / name / f"{i}.png").write_bytes(encode(gradient(8, 8, i), "PNG"))
    return tmp_path


def _spec(directory, text: str) -> str:
    (directory / "list.txt").write_text(text)
    return f"classes:{directory / 'list.txt'}:folder:{directory / 'photos'}"


def test_images_of_the_listed_classes_in_the_lists_order(photos):
    source = open_source(_spec(photos, "# mine\ndoe  \n\nbee\n"))
    assert source.classes == ("doe", "bee") and len(source) == 5
    found = [source[i] for i in range(5)]
    assert {(example.name.split("/")[0], example.label) for example in found} == {("doe", 0), ("bee", 1)}
    assert [example.label for example in found] == list(source.labels())
    assert pickle.loads(pickle.dumps(source))[4] == found[4]


def test_a_subset_of_a_subset(photos):
    (photos / "inner.txt").write_text("cow\nbee\n")
    inner = f"classes:{photos / 'inner.txt'}:folder:{photos / 'photos'}"
    (photos / "outer.txt").write_text("bee\n")
    source = open_source(f"classes:{photos / 'outer.txt'}:{inner}")
    assert source.classes == ("bee",) and [source[i].label for i in range(len(source))] == [0, 0, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# nothing\n", "is an empty list"),
        ("ant\nant\n", "ant more than once"),
        ("ant\nbea\n", "1 classes that the source does not have: bea; nearest"),
    ],
)
def test_wrong_lists(photos, text: str, message: str):
    with pytest.raises(SourceError, match=message):
        open_source(_spec(photos, text))


def test_sources_without_classes_and_lists_that_are_not_there(photos):
    with pytest.raises(SourceError, match="cannot be read"):
        open_source(f"classes:{photos / 'absent.txt'}:folder:{photos / 'photos'}")
    with pytest.raises(SourceError, match="has no classes"):
        (photos / "one.txt").write_text("ant\n")
        open_source(f"classes:{photos / 'one.txt'}:folder:{photos / 'photos' / 'ant'}")
    with pytest.raises(SourceError, match="expected classes:LIST:SOURCE"):
        open_source("classes:list.txt")


def test_the_config_is_refused_before_anything_opens(photos):
    spec = _spec(photos, "ant\n")
    assert cross.source_mistakes("data.source", spec) == []
    lines = cross.source_mistakes("data.source", f"classes:{photos / 'absent.txt'}:folder:{photos / 'nowhere'}")
    assert len(lines) == 2 and "LIST a file that exists" in lines[0] and "a directory that exists" in lines[1]


class Packed(Source):
    """Nine examples in one file, as a set of records has them: its listing has fewer entries than examples."""

    spec, classes = "packed", ("a", "b")

    def __len__(self) -> int:
        return 9

    def __getitem__(self, index: int) -> Example:
        return Example(f"{index}", b"", index % 2)

    def listing(self):
        yield Entry("part-0", 99, -1)


def test_two_parts_of_packed_files_are_told_apart():
    parts = [Selection(Packed(), np.array(positions)) for positions in ([0, 1, 2], [3, 4, 5], [0, 1, 2])]
    digests = [part.fingerprint().digest for part in parts]
    assert digests[0] == digests[2] != digests[1] and parts[0].fingerprint().count == 3
