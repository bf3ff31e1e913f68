"""Several sources as one: which image stands where, labels, and what is refused."""

from __future__ import annotations

import collections

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sere_jax.data.batches.order import Shares, counts_in_epoch, example_index, replacement_index, steps_per_epoch
from sere_jax.data.sources.example import SourceError
from sere_jax.data.sources.mixture import Mixture, split_mixture
from sere_jax.data.sources.open import open_source
from tests.data.images.images import MemorySource, encode, gradient

sizes = st.lists(st.integers(1, 30), min_size=2, max_size=4)


def test_parts_lie_one_after_the_other():
    mixture = Mixture("mix", [MemorySource(3), MemorySource(5)], [1.0, 1.0])
    assert len(mixture) == 8 and mixture.classes == ()
    assert [mixture[i].name for i in range(8)] == [f"image {i}" for i in (0, 1, 2, 0, 1, 2, 3, 4)]
    assert mixture.shares == Shares((3, 5), (1.0, 1.0))
    assert Mixture("mix", [MemorySource(3), MemorySource(5)], []).shares.weights == (3.0, 5.0)
    with pytest.raises(IndexError):
        mixture[8]


@given(sizes, st.data(), st.integers(0, 2**32), st.integers(1, 9))
def test_the_share_of_a_part_is_its_weight_in_every_epoch(sizes, data, seed, batch):
    weights = data.draw(st.lists(st.floats(0.2, 5), min_size=len(sizes), max_size=len(sizes)))
    shares, batch = Shares(tuple(sizes), tuple(weights)), min(batch, sum(sizes))
    length = steps_per_epoch(shares, batch) * batch
    assert length == sum(sizes) // batch * batch
    counts = counts_in_epoch(shares, length)
    assert sum(counts) == length
    assert all(abs(count - length * w / sum(weights)) < 1 for count, w in zip(counts, weights, strict=True))
    if not all(counts):
        with pytest.raises(ValueError, match=r"has none of part"):
            example_index(seed, 0, shares, batch)
        return
    part_of = np.repeat(np.arange(len(sizes)), sizes)
    run = [example_index(seed, position, shares, batch) for position in range(3 * length)]
    for epoch in range(3):
        seen = collections.Counter(part_of[run[epoch * length : (epoch + 1) * length]].tolist())
        assert [seen[part] for part in range(len(sizes))] == list(counts)


@given(sizes, st.integers(0, 2**32), st.integers(1, 6))
def test_a_part_shows_every_image_before_any_again(sizes, seed, times):
    shares = Shares(tuple(sizes), tuple(float(times if i == 0 else 1) for i in range(len(sizes))))
    if not all(counts_in_epoch(shares, shares.examples)):
        return
    run = np.array([example_index(seed, position, shares, 1) for position in range(4 * shares.examples)])
    first = 0
    for size in sizes:
        own = run[(run >= first) & (run < first + size)]
        for lap in range(len(own) // size):
            assert sorted(own[lap * size : (lap + 1) * size]) == list(range(first, first + size))
        first += size


def test_laps_epochs_and_parts_have_orders_of_their_own():
    shares = Shares((16, 16), (1.0, 1.0))
    run = np.array([example_index(5, position, shares, 4) for position in range(32 * 6)]).reshape(6, 32)
    laps = [tuple(epoch[epoch // 16 == part] % 16) for epoch in run for part in (0, 1)]
    assert len(set(laps)) == 12
    assert len({tuple(epoch // 16) for epoch in run}) == 6  # where the parts stand
    assert [example_index(6, position, shares, 4) for position in range(32)] != run[0].tolist()


def test_the_numbers_that_old_runs_depend_on():
    """Changing them breaks the resume of every run with a mixture."""
    shares = Shares((5, 7), (2.0, 1.0))
    assert [example_index(7, position, shares, 4) for position in range(12)] == [5, 3, 7, 1, 4, 2, 0, 0, 8, 4, 1, 10]


def test_a_replacement_comes_from_the_same_part():
    rng = np.random.default_rng(0)
    shares = Shares((3, 5, 2), (1.0, 1.0, 1.0))
    for index, part in ((0, {0, 1, 2}), (2, {0, 1, 2}), (3, {3, 4, 5, 6, 7}), (7, {3, 4, 5, 6, 7}), (8, {8, 9})):
        assert {replacement_index(rng, index, shares) for _ in range(100)} == part
    assert {replacement_index(rng, 1, 4) for _ in range(100)} == {0, 1, 2, 3}


def folder(root, *classes):
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        (root / name / "a.png").write_bytes(encode(gradient(8, 8, blue=number)))
    return f"folder:{root}"


def test_labels_go_by_name(tmp_path):
    one, two = folder(tmp_path / "one", "cat", "owl"), folder(tmp_path / "two", "ant", "cat")
    mixture = open_source(f"mix:3*{one}|1*{two}")
    assert mixture.classes == ("ant", "cat", "owl")
    assert [mixture[i].label for i in range(4)] == mixture.labels().tolist() == [1, 2, 0, 1]
    unlabelled = open_source(f"mix:{one}|folder:{tmp_path / 'two' / 'ant'}")
    assert unlabelled.classes == () and [unlabelled[i].label for i in range(3)] == unlabelled.labels().tolist() == [-1] * 3


def test_the_text_of_a_mixture():
    assert split_mixture("mix:0.7*folder:/a b|.3* tfds:x/y:1.0.0:train[:5%]") == (["folder:/a b", "tfds:x/y:1.0.0:train[:5%]"], [0.7, 0.3])
    assert split_mixture("mix:folder:/a*b|bundled") == (["folder:/a*b", "bundled"], [])  # a star after the colon is a name's
    for wrong, message in [
        ("mix:folder:/a", "two or more"),
        ("mix:", "two or more"),
        ("mix:folder:/a|", "two or more"),
        ("mix:2*folder:/a|folder:/b", "one for each or none"),
        ("mix:0*folder:/a|1*folder:/b", "found the weight '0', expected a number above 0"),
        ("mix:x*folder:/a|1*folder:/b", "found the weight 'x'"),
        ("mix:nan*folder:/a|1*folder:/b", "found the weight 'nan'"),
    ]:
        with pytest.raises(SourceError, match=message):
            split_mixture(wrong)
    with pytest.raises(SourceError, match="SOURCE no mixture"):
        open_source("classes:a.txt:mix:bundled|bundled")
