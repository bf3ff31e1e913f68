"""k-NN against a naive restatement and against cases that can be checked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sere_jax.evals import scores
from sere_jax.evals.frozen import knn
from sere_jax.evals.network import EvalError
from tests.oracles import knn as oracle


def _clusters(rng: np.random.Generator, n: int, classes: int, width: int = 12) -> tuple[np.ndarray, np.ndarray]:
    labels = rng.integers(0, classes, n).astype(np.int32)
    centres = np.random.default_rng(1).normal(size=(classes, width))
    return (centres[labels] + 1.5 * rng.normal(size=(n, width))).astype(np.float32), labels


def test_equals_the_naive_statement_at_every_k():
    rng = np.random.default_rng(0)
    gallery, query = _clusters(rng, 90, 7), _clusters(rng, 40, 7)
    found = dict(knn.evaluate(knn.Labelled(*gallery), knn.Labelled(*query), neighbours=(1, 10, 20)))
    assert set(found) == {f"k{k}/top{t}" for k in (1, 10, 20) for t in (1, 5)}
    for name, value in found.items():
        k, top = (int(part) for part in name.replace("k", "").split("/top"))
        assert value == pytest.approx(oracle.accuracy(*gallery, *query, k, top)), name  # counts of the same hits: exact


def test_votes_equal_the_naive_scores():
    rng = np.random.default_rng(2)
    (gallery, labels), (query, _) = _clusters(rng, 30, 4), _clusters(rng, 5, 4)
    similarity, rows = knn.nearest(knn.unit(query), knn.unit(gallery), 8)
    found = knn.votes(similarity, labels[rows], 4)
    expected = np.array([oracle.scores(gallery, labels, q, 8, 0.07, 4) for q in query])
    # Cosines are float32 (1e-7 or so); divided by 0.07 and put through exp that is some 1e-5 relative.
    np.testing.assert_allclose(found, expected, rtol=5e-5)


@pytest.mark.parametrize("query_chunk, gallery_chunk", [(1024, 16384), (3, 7), (1, 50), (40, 1)])
def test_chunks_do_not_change_the_neighbours(query_chunk, gallery_chunk):
    rng = np.random.default_rng(3)
    gallery, query = (knn.unit(rng.normal(size=(n, 6))) for n in (50, 11))
    similarity, rows = knn.nearest(query, gallery, 9, query_chunk=query_chunk, gallery_chunk=gallery_chunk)
    expected = np.argsort(-(query @ gallery.T), axis=1)[:, :9]
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(similarity, np.take_along_axis(query @ gallery.T, expected, 1), atol=1e-6)  # float32 dot products


def test_one_near_neighbour_outweighs_two_far_ones():
    gallery = np.array([[1, 0], [0, 1], [0, 1]], np.float32)
    query = np.array([[1, 0.2]], np.float32)
    found = dict(knn.evaluate(knn.Labelled(gallery, np.array([0, 1, 1])), knn.Labelled(query, np.array([0])), neighbours=(3,)))
    assert found == {"k3/top1": 1.0}  # exp(.98 / .07) against 2 exp(.2 / .07); no top 5 with two classes


@given(st.data())
@settings(max_examples=30)
def test_a_query_never_votes_on_itself(data):
    """Any of the queries may be in the gallery, once, several times or never; all others vote as they always did."""
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    gallery, query = _clusters(rng, 24, 4), _clusters(rng, 9, 4)
    numbers = np.array(data.draw(st.lists(st.integers(0, 30), min_size=24, max_size=24)))
    asked = np.array(data.draw(st.lists(st.integers(0, 40), min_size=9, max_size=9)))
    own = [{row for row in range(24) if numbers[row] == number} for number in asked]
    for number, rows in enumerate(own):  # the same image has the same features
        gallery[0][list(rows)] = query[0][number]
    most = max(map(len, own))
    if most == 24:
        return
    wanted = (1, 5, 24)
    found = dict(knn.evaluate(knn.Labelled(*gallery, numbers), knn.Labelled(*query, asked), neighbours=wanted))
    assert set(found) == {f"k{min(k, 24 - most)}/top1" for k in wanted}
    for name, value in found.items():
        k = int(name.removeprefix("k").removesuffix("/top1"))
        assert value == pytest.approx(oracle.accuracy(*gallery, *query, k, 1, own)), name


def test_leaving_one_out_is_exact_among_equal_features():
    """Four images with one feature: similarity cannot tell which of them is the query."""
    features, labels, images = np.ones((4, 2), np.float32), np.array([0, 0, 1, 1]), np.arange(4)
    everything = knn.Labelled(features, labels, images)
    _, rows = knn.nearest_others(everything, everything, 3)
    assert [sorted(row) for row in rows.tolist()] == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]
    # Each sees one image of its own class and two of the other.
    assert dict(knn.evaluate(everything, everything, neighbours=(9,))) == {"k3/top1": 0.0}


def test_a_gallery_of_the_query_alone_is_refused():
    alone = knn.Labelled(np.ones((1, 2), np.float32), np.array([0]), np.array([7]))
    with pytest.raises(EvalError, match="no images besides the query itself"):
        list(knn.evaluate(alone, alone))


def test_more_neighbours_than_images_are_clipped_and_said():
    images = knn.Labelled(np.eye(4, dtype=np.float32), np.arange(4))
    assert list(dict(knn.evaluate(images, images, neighbours=(2, 10, 200)))) == ["k2/top1", "k4/top1"]
    clipped, notes = knn.clip_ks((2, 10, 200), 4)
    assert clipped == (2, 4) and "k = 10, 200" in notes[0] and "4 images" in notes[0]


def test_unlabelled_images_are_refused_with_a_way_out():
    images = knn.Labelled(np.eye(3, dtype=np.float32), np.array([0, -1, 1]))
    with pytest.raises(EvalError, match="retrieval"):
        list(knn.evaluate(images, images))


@pytest.mark.parametrize("ks", [(), (0, 5), (-1,)])
def test_senseless_neighbour_counts_are_refused(ks):
    with pytest.raises(EvalError, match="neighbours"):
        knn.clip_ks(ks, 10)


def test_equal_scores_are_ranked_by_class_and_unvoted_classes_never_hit():
    table = np.array([[1.0, 1.0, 0.0, 0.0, 0.0, 0.0]])
    assert scores.top_accuracy(table, np.array([0]), 1) == 1
    assert scores.top_accuracy(table, np.array([1]), 1) == 0
    assert scores.top_accuracy(table, np.array([1]), 2) == 1
    assert scores.top_accuracy(table, np.array([2]), 5) == 0
