"""What the figures show, before it is drawn."""

from __future__ import annotations

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from sere_jax.evals.figures import attention, canvas, channels, crops, pca, relations
from sere_jax.evals.figures.first_batch import FirstBatch
from sere_jax.evals.frozen.views import SeenPairs
from sere_jax.ops.geometry import overlap_points
from sere_jax.types import Features, Views
from tests.oracles import relations as oracle


def test_cls_attention_is_the_first_row_without_itself():
    values = np.arange(2 * 3 * 5 * 5, dtype=np.float32).reshape(2, 3, 5, 5)
    found = attention.cls_attention(values, (2, 2))
    np.testing.assert_array_equal(found[1, 2], values[1, 2, 0, 1:].reshape(2, 2))


@given(st.lists(st.floats(0.01, 1.0), min_size=4, max_size=4), st.floats(0.05, 0.99))
def test_kept_patches_are_the_fewest_strongest_that_hold_the_mass(values, share):
    weights = np.asarray(values).reshape(2, 2)
    kept = attention.keep_mass(weights, share) > 0
    total = weights.sum()
    assert weights[kept].sum() >= share * total - 1e-9
    if kept.sum() > 1:  # without the weakest of them they hold less
        assert weights[kept].sum() - weights[kept].min() <= share * total + 1e-9
    assert not kept.all() or share > 1 - weights.min() / total - 1e-9
    assert weights[kept].min() >= (weights[~kept].max() if (~kept).any() else 0)


def test_overlay_leaves_what_no_head_looks_at():
    image = np.full((4, 4, 3), 200, np.uint8)
    head = np.array([[[0.0, 1.0], [0.0, 0.0]]], np.float32)
    found = attention.overlay(image, head)
    assert np.allclose(found[:, :2], found[3, 3]) and not np.allclose(found[0, 3], found[3, 3])


def test_principal_colours_find_the_planted_directions_and_ignore_signs():
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.normal(size=(8, 3)))[0].T
    scores = rng.normal(size=(2, 4, 4, 3)) * [9.0, 3.0, 1.0]
    found, shares = pca.principal_colours(scores @ directions)
    planted = (scores - scores.mean((0, 1, 2))).reshape(-1, 3)
    for k in range(3):
        assert abs(np.corrcoef(found[..., k].ravel(), planted[:, k])[0, 1]) > 0.9  # clipping at percentiles bends the line a little
    assert shares.sum() == pytest.approx(1, abs=1e-5) and (np.diff(shares) < 0).all()
    again, _ = pca.principal_colours(scores @ directions)
    np.testing.assert_array_equal(found, again)
    assert found.min() == 0 and found.max() == 1


def test_channels_are_chosen_for_strength_and_novelty():
    rng = np.random.default_rng(0)
    strong, other = rng.normal(size=50), rng.normal(size=50)
    tokens = np.stack([5 * strong, 4 * strong + 0.01 * other, 3 * other, 0.1 * rng.normal(size=50)], 1)
    assert channels.choose(tokens, 2).tolist() == [0, 2]  # 1 is as good as a copy of 0
    assert sorted(channels.choose(tokens, 9).tolist()) == [0, 1, 2, 3]
    np.testing.assert_allclose(channels.relation(tokens), np.corrcoef(tokens.T), atol=1e-9)


@pytest.mark.parametrize("flips", [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("sampling, at, query", [("endpoints", (0.25, 0.8), (11.25, 34.0)), ("centers", (0.0, 1.0), (5.0, 40.0))])
def test_relation_rows_equal_the_naive_statement(flips, sampling, at, query):
    """The overlap is x 10..40, y 5..30: a query is a place in it, however the points of the comparison are laid."""
    rng = np.random.default_rng(0)
    boxes = np.array([[0, 0, 40, 30], [10, 5, 60, 50]], np.float32)
    maps = rng.normal(size=(2, 1, 4, 4, 6)).astype(np.float32)
    sides = [(jnp.asarray(boxes[i : i + 1]), jnp.asarray(flips[i : i + 1])) for i in (0, 1)]
    points = overlap_points(*sides[0], *sides[1], size=5, sampling=sampling)
    both = [Features(jnp.zeros((1, 6)), jnp.asarray(m), jnp.asarray(m)) for m in maps]
    assert relations.query_at(boxes, at) == pytest.approx(query)
    case = relations.Case(
        "photo", np.zeros((60, 80, 3), np.uint8), np.zeros((2, 8, 8, 3)), boxes, np.array(flips), relations.query_at(boxes, at)
    )
    found = relations.relation_rows(SeenPairs(jnp.zeros((1, 2, 8, 8, 3)), *both, points), case, tokens="post", temperature=0.5)
    rows = []
    for side in (0, 1):
        left, top, width, height = boxes[side]
        across = (query[1] - left) / width
        asked = oracle.bilinear_border(maps[side, 0], (query[0] - top) / height, 1 - across if flips[side] else across)
        row = oracle.softmax(maps[side, 0].reshape(16, 6).astype(np.float64) @ asked / np.sqrt(6) / 0.5)
        np.testing.assert_allclose(found.maps[side][0].ravel(), row, rtol=1e-4)  # float32 against float64
        grid = oracle.overlap_grid(boxes[0], flips[0], boxes[1], flips[1], 5, sampling)[side]
        sampled = np.stack([oracle.bilinear_border(maps[side, 0], y, x) for y, x in grid])
        rows.append(oracle.softmax(sampled @ asked / np.sqrt(6) / 0.5))
    np.testing.assert_allclose(found.difference[0].ravel(), abs(rows[0] - rows[1]), atol=1e-5)


def test_both_views_of_a_relation_share_a_scale_that_the_bar_states():
    """Shares in units of the uniform relation: 4 patches in view 1, 9 in view 2, of which the largest has 0.5 x 9."""
    maps = [np.full((1, 2, 2), 0.25), np.full((1, 3, 3), 0.5 / 8)]
    maps[1][0, 1, 2] = 0.5
    boxes = np.array([[0, 0, 40, 30], [10, 5, 60, 50]], np.float32)
    case = relations.Case("photo", np.zeros((60, 80, 3), np.uint8), np.zeros((2, 8, 8, 3)), boxes, np.array([False, False]), (11.0, 34.0))
    axes = Figure().subplots(1, 5)
    relations._draw_network(axes, case, relations.Rows(maps, np.full((1, 2, 2), 0.1)))
    assert [axis.images[0].get_clim() for axis in axes[:2]] == [(0.0, 4.5), (0.0, 4.5)]
    assert [text.get_text() for text in axes[2].texts] == ["4.5", "0"]
    assert axes[3].images[0].get_clim() == (0.0, pytest.approx(0.4)) and [text.get_text() for text in axes[4].texts] == ["0.4", "0"]


def test_overlap_box_and_places_in_a_view():
    boxes = np.array([[0, 0, 40, 30], [10, 5, 60, 50]], np.float32)
    assert relations.overlap_box(boxes) == (10, 5, 40, 30)
    assert relations.in_view((15.0, 10.0), boxes[0], False) == (0.5, 0.25)
    assert relations.in_view((15.0, 10.0), boxes[0], True) == (0.5, 0.75)


def test_equal_figures_are_equal_files(tmp_path):
    caption = canvas.Caption(("network: runs/a",), (("network", "teacher, step 5"),), ("a.png", "b.png"))

    def drawn(name: str) -> bytes:
        rng = np.random.default_rng(0)
        figure = pca.draw(rng.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8), [rng.normal(size=(2, 4, 4, 5))], caption)
        return canvas.save(figure, tmp_path / name).read_bytes()

    assert drawn("a.png") == drawn("b.png")


@given(st.text("ab_-. /", max_size=60), st.integers(3, 20))
def test_names_are_broken_between_words_and_lose_nothing(text, width):
    lines = canvas.wrap(text, width).split("\n")
    assert all(len(line) <= width for line in lines)
    assert "".join(lines).replace(" ", "") == "".join(text.split())
    whole = [word for word in text.split() if len(word) <= width]
    assert all(any(word in line for line in lines) for word in whole)


@pytest.mark.parametrize("detail", ["seed 0", "teacher, step 1400", "student, step 250000"])
def test_the_shares_of_a_principal_component_analysis_stay_on_one_line(detail: str):
    caption = canvas.Caption((), (("network", detail),), ("a.png",))
    figure = pca.draw(np.zeros((1, 8, 8, 3), np.uint8), [np.eye(16).reshape(1, 4, 4, 16)], caption)
    lines = [line for axis in figure.axes for text in axis.texts for line in text.get_text().split("\n")]
    assert any(line.replace("\u00a0", " ").endswith("7 + 7 + 7 %") for line in lines), lines


def test_points_of_both_global_crops_are_seen_where_they_coincide():
    """A local crop inside both: the first's dots are larger than the second's, which are drawn over them."""
    boxes = np.array([[[0, 0, 40, 40], [0, 0, 40, 40], [10, 10, 10, 10]]], np.float32)
    pixels = np.zeros((1, 2, 8, 8, 3), np.uint8)
    views = Views(pixels, pixels[:, :1], boxes, np.zeros((1, 3), bool), np.array([0]), np.array([False]))
    batch = FirstBatch([np.zeros((40, 40, 3), np.uint8)], ["a.png"], views, (pixels / 255, pixels[:, :1] / 255))
    figure = crops.draw(batch, [], patch=4, points=3, local_points=3, sampling="endpoints")
    local = figure.axes[3]
    dots = [(line.get_color(), line.get_markersize(), line.get_xydata().tolist()) for line in local.lines]
    assert [colour for colour, _, _ in dots] == [crops.view_colour(0), crops.view_colour(1)]
    assert dots[0][2] == dots[1][2] and dots[0][1] > 1.5 * dots[1][1]


def test_a_long_note_pushes_the_panels_down():
    """Nothing of the text above the panels may reach into them or their headings."""
    for words in (3, 200):
        figure, axes = canvas.grid(2, 3, title="A title", about=["run " * words], note="words " * words, headings=[["a heading", "", ""]])
        figure.canvas.draw()
        boxes = [text.get_window_extent() for text in (*figure.texts, axes[0, 0].title)]
        assert all(upper.y0 >= lower.y1 for upper, lower in itertools.pairwise(boxes)), words
        assert max(box.x1 for box in boxes) <= figure.bbox.x1 and boxes[0].y1 <= figure.bbox.y1


def test_overlap_points_of_local_crops_lie_on_the_same_source_places():
    """The local crop's points in source pixels, by its own box, against those of the global crop by its box."""
    boxes = np.array([[[0, 0, 40, 30], [10, 5, 60, 50], [20, 10, 10, 8], [200, 200, 5, 5]]], np.float32)
    flips = np.array([[True, False, True, False]])
    pixels = np.zeros((1, 2, 8, 8, 3), np.uint8)
    views = Views(pixels, pixels, boxes, flips, np.array([0]), np.array([False]))
    [shared] = crops.overlaps(views, 5, 3, "endpoints")
    assert set(shared) == {(0, 1), (0, 2), (1, 2)}  # the second local crop lies elsewhere

    def in_source(number: int, points: np.ndarray) -> np.ndarray:
        left, top, width, height = boxes[0, number]
        y, x = points
        return np.stack([top + height * y, left + width * (1 - x if flips[0, number] else x)])

    for (i, j), overlap in shared.items():
        # Coordinates of some tens of pixels in float32.
        np.testing.assert_allclose(in_source(i, overlap.first), in_source(j, overlap.second), atol=1e-4)
    np.testing.assert_allclose(in_source(2, shared[0, 2].second)[1], [20, 25, 30], atol=1e-4)
