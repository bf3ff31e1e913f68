from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sere_jax.data.crops.views import ViewRecipe, make_views, sample_box
from sere_jax.data.images.resize import crop_and_resize
from sere_jax.ops.geometry import overlap_points, sample
from tests.oracles import crops as oracle

ASPECT = (3 / 4, 4 / 3)
seeds = st.integers(0, 2**32 - 1)
sides = st.integers(1, 300)


def rng_of(seed):
    return np.random.default_rng(seed)


@given(seeds, sides, sides, st.sampled_from([(0.35, 1.0), (0.05, 0.35), (0.14, 1.0), (1.0, 1.0)]))
def test_boxes_are_those_of_the_naive_statement_and_lie_inside(seed, height, width, scale):
    box = sample_box(height, width, scale, ASPECT, rng_of(seed))
    assert box == oracle.random_resized_crop(height, width, scale, ASPECT, rng_of(seed))
    left, top, w, h = box
    assert left >= 0 and top >= 0 and w >= 1 and h >= 1
    assert left + w <= width and top + h <= height


@given(seeds, st.sampled_from([(1, 40), (40, 1), (1, 1), (2, 3), (1, 4000)]), st.sampled_from([(1.0, 1.0), (0.05, 0.35)]))
def test_photographs_of_a_few_pixels_have_boxes_inside_for_views_of_any_shape(seed, size, scale):
    for aspect in (ASPECT, (3.0, 16 / 3), (3 / 16, 1 / 3)):  # views four times as wide as high, and as high as wide
        left, top, width, height = sample_box(*size, scale, aspect, rng_of(seed))
        assert left >= 0 and top >= 0 and width >= 1 and height >= 1 and left + width <= size[1] and top + height <= size[0]


@pytest.mark.parametrize("backend", ["fast", "pil"])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_photographs_of_a_few_pixels_become_views(backend, channels):
    """Narrower than a patch, or a single pixel: views of their colours."""
    for height, width in ((1, 1), (40, 1), (1, 40), (3, 2)):
        recipe = ViewRecipe(global_size=32, local_size=16, local_count=2, global_width=64)
        views = make_views(np.full((height, width, channels), 90, np.uint8), recipe, rng_of(0), backend)
        assert (views.global_views == 90).all() and (views.local_views == 90).all()


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(100, 1000, (433, 0, 133, 100)), (1000, 100, (0, 433, 100, 133)), (1, 1, (0, 0, 1, 1)), (1, 50, (24, 0, 1, 1))],
)
def test_an_image_that_no_box_fits_gets_the_central_one(height, width, expected):
    # The whole area with an aspect within 3/4 .. 4/3 never fits into such a strip, so that all ten tries fail.
    scale = (1.0, 1.0) if height * width > 1 else (10.0, 10.0)
    assert sample_box(height, width, scale, ASPECT, rng_of(0)) == expected


def test_boxes_are_distributed_as_the_recipe_says():
    rng = rng_of(3)
    boxes = np.array([sample_box(400, 400, (0.1, 0.5), ASPECT, rng) for _ in range(4000)], np.float64)
    area, ratio = boxes[:, 2] * boxes[:, 3] / 400**2, np.log(boxes[:, 2] / boxes[:, 3])
    # In a square image every box of this scale fits, so nothing is drawn twice: area and log ratio are uniform. The
    # standard error of a quantile of 4000 uniform draws is below .008 of the range, and rounding moves an area by < .003.
    for q in (0.1, 0.25, 0.5, 0.75, 0.9):
        assert np.quantile(area, q) == pytest.approx(0.1 + 0.4 * q, abs=0.015)
        assert np.quantile(ratio, q) == pytest.approx(np.log(ASPECT[0]) + np.log(16 / 9) * q, abs=0.025)
    place = boxes[:, :2] / (400 - boxes[:, 2:])
    for axis in (0, 1):
        assert np.quantile(place[:, axis], [0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9], abs=0.03)
    assert abs(np.corrcoef(place[:, 0], place[:, 1])[0, 1]) < 0.06  # standard error .016


def coordinates(height, width):
    """An image whose red is the column and whose green is the row, so that a crop's pixels tell where they come from."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns, rows, np.full_like(rows, 7)], -1).astype(np.uint8)


@given(seeds, st.integers(40, 250), st.integers(40, 250), st.sampled_from(["fast", "pil"]))
def test_box_and_flip_describe_the_pixels(seed, height, width, backend):
    recipe = ViewRecipe(global_size=48, local_count=2, local_size=16, global_scale=(0.3, 1.0), local_scale=(0.05, 0.3))
    views = make_views(coordinates(height, width), recipe, rng_of(seed), backend)
    for n, (box, flip) in enumerate(zip(views.boxes, views.flips, strict=True)):
        view = views.global_views[n] if n < 2 else views.local_views[n - 2]
        size = len(view)
        left, top, w, h = box.astype(np.float64)
        u = (np.arange(size) + 0.5) / size
        columns = left + (1 - u if flip else u) * w - 0.5
        rows = top + u * h - 0.5
        # Linear filters reproduce a ramp away from the border, where taps are missing: two source pixels or two output
        # pixels of support, whichever is wider. One level: rounding to uint8 after each of two passes.
        x, y = (slice(edge, size - edge) for edge in (int(np.ceil(2 * max(1, size / side))) + 1 for side in (w, h)))
        assert np.abs(view[y, x, 0] - columns[None, x]).max(initial=0) <= 1.01
        assert np.abs(view[y, x, 1] - rows[y, None]).max(initial=0) <= 1.01
        assert (view[..., 2] == 7).all()


@pytest.mark.parametrize("flip", [False, True])
def test_fast_shrinks_much_by_the_area_mean(flip):
    image = rng_of(1).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    out = np.empty((15, 18, 3), np.uint8)
    crop_and_resize(image, (5, 7, 61, 50), flip, out, "fast")
    expected = oracle.resize(image[7:57, 5:66], 15, 18, oracle.area_weights)
    assert np.abs(out - (expected[:, ::-1] if flip else expected)).max() <= 0.51  # rounding only


def photograph(height, width):
    """The power of frequencies falls with their square, as in photographs."""
    noise = np.fft.rfft2(rng_of(4).normal(size=(height, width, 3)), axes=(0, 1))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    smooth = np.fft.irfft2(noise / np.maximum(frequency, 1 / height)[..., None], (height, width), axes=(0, 1))
    return np.clip(128 + 45 * smooth / smooth.std(), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("shrink", [0.5, 0.9, 1.05, 1.15, 1.3, 1.5, 1.7, 1.9, 2.2, 2.5, 2.9, 3.5, 5.0, 7.0, 15.0])
def test_fast_is_close_to_antialiased_bicubic_at_every_size(shrink):
    """No size is served worse than another: OpenCV's area filter has 38 to 41 dB from Pillow on this picture, this 37 to 44."""
    image = photograph(640, 700)
    side = min(600, round(96 * shrink))
    size = round(side / shrink)
    outs = [np.empty((size, size, 3), np.uint8) for _ in range(2)]
    for out, backend in zip(outs, ("fast", "pil"), strict=True):
        crop_and_resize(image, (21, 33, side, side), False, out, backend)
    error = ((outs[0].astype(float) - outs[1]) ** 2).mean()
    assert 10 * np.log10(255**2 / error) > 36.5


def test_fast_sees_one_pixel_beyond_the_box_and_no_further():
    image = photograph(200, 200)
    for side in (40, 60, 90, 130):
        changed = np.full_like(image, 0)
        changed[29 : 31 + side, 19 : 21 + side] = image[29 : 31 + side, 19 : 21 + side]
        outs = np.empty((2, 40, 40, 3), np.uint8)
        for out, picture in zip(outs, (image, changed), strict=True):
            crop_and_resize(picture, (20, 30, side, side), False, out, "fast")
        np.testing.assert_array_equal(*outs)


@pytest.mark.parametrize(("rows", "columns"), [(24, 20), (80, 90), (24, 90)])
def test_pil_is_antialiased_bicubic_of_the_crop_alone(rows, columns):
    image = rng_of(2).integers(80, 176, (90, 70, 3), dtype=np.uint8)  # no over- or undershoot reaches 0 or 255
    out = np.empty((rows, columns, 3), np.uint8)
    crop_and_resize(image, (5, 7, 61, 50), False, out, "pil")
    expected = oracle.resize(image[7:57, 5:66], rows, columns, oracle.bicubic_weights)
    # Half a level of rounding after each pass; the second pass's weights sum to 1 but up to 1.3 in absolute value.
    assert np.abs(out - expected).max() <= 1.15


@pytest.mark.parametrize("box", [(0, 0, 64, 8), (0, 0, 8, 64), (3, 3, 16, 16), (0, 0, 1, 1)])
def test_fast_handles_a_side_that_shrinks_while_the_other_grows(box):
    image = coordinates(64, 64) * np.uint8(3)
    out = np.empty((16, 16, 3), np.uint8)
    crop_and_resize(image, box, False, out, "fast")
    left, top, w, h = box
    crop = image[top : top + h, left : left + w].astype(np.float64)
    assert np.abs(out.mean((0, 1)) - crop.mean((0, 1))).max() < 1.0  # both filters keep the mean of a ramp
    if w > 16:  # the shrinking side is the exact area mean
        expected = oracle.area_weights(w, 16) @ crop[0, :, 0]
        assert np.abs(out[:, :, 0] - expected).max() <= 1.01


def test_flips_come_half_of_the_time_and_after_the_box():
    recipe = ViewRecipe(global_size=8, local_size=4)
    image = coordinates(32, 32)
    views = [make_views(image, recipe, rng_of(seed)) for seed in range(500)]
    share = np.mean([view.flips for view in views])
    assert share == pytest.approx(0.5, abs=0.04)  # 3000 draws: standard error .009
    never = make_views(image, ViewRecipe(global_size=8, local_size=4, flip_prob=0.0), rng_of(7))
    always = make_views(image, ViewRecipe(global_size=8, local_size=4, flip_prob=1.0), rng_of(7))
    np.testing.assert_array_equal(never.boxes, always.boxes)
    np.testing.assert_array_equal(never.global_views[:, :, ::-1], always.global_views)
    assert always.flips.all() and not never.flips.any()


@pytest.mark.parametrize("backend", ["fast", "pil"])
@pytest.mark.parametrize("shape", [(40, 24), (24, 56)])
@pytest.mark.parametrize("seed", range(4))
def test_views_of_any_shape_show_the_same_source_points(seed, backend, shape):
    """Box and flip lead from a point of the source to both of two views that are not square: their pixels name the point."""
    recipe = ViewRecipe(global_size=shape[0], global_width=shape[1], local_count=1, local_size=12, local_width=20, global_scale=(0.4, 1.0))
    views = make_views(coordinates(180, 200), recipe, rng_of(seed), backend)
    assert views.global_views.shape == (2, *shape, 3) and views.local_views.shape == (1, 12, 20, 3)
    boxes, flips, crops = jnp.asarray(views.boxes[None]), jnp.asarray(views.flips[None]), jnp.asarray(views.global_views[None], jnp.float32)
    points = overlap_points(boxes[:, 0], flips[:, 0], boxes[:, 1], flips[:, 1], size=5, sampling="centers")
    one, other = (np.asarray(sample(crops[:, i], points[i], padding="border"))[0] for i in (0, 1))
    # Away from the views' borders, where half a pixel of a view is up to 5 source pixels: there the ramp ends.
    inside = np.ones((5, 5), bool)
    for seen in points:
        rows, columns = (np.abs(np.asarray(axis)[0] - 0.5) < 0.44 for axis in (seen.y, seen.x))
        inside &= rows[:, None] & columns
    # Two roundings to whole levels in each view.
    assert np.abs(one - other)[inside.reshape(-1), :2].max(initial=0) <= 2.5


def test_crops_are_distorted_alike_whatever_the_shape_of_their_views():
    square = ViewRecipe(global_size=16, local_count=0, global_scale=(0.05, 0.2))  # every box fits
    wide = dataclasses.replace(square, global_width=32)
    image = coordinates(250, 250)
    means = {}
    for name, recipe in (("square", square), ("wide", wide)):
        boxes = np.concatenate([make_views(image, recipe, rng_of(seed)).boxes for seed in range(300)])
        means[name] = np.log(boxes[:, 2] / boxes[:, 3]).mean()
    assert means["square"] == pytest.approx(0.0, abs=0.03)  # 600 draws over .58: standard error .007
    assert means["wide"] == pytest.approx(np.log(2), abs=0.03)
    # A box of the whole image is not within the range of aspects of a view twice as wide.
    assert sample_box(100, 100, (1.0, 1.0), (1.5, 2.7), rng_of(0)) == (0, 16, 100, 67)


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 13])
@pytest.mark.parametrize("box", [(3, 2, 20, 22), (0, 0, 60, 50), (0, 0, 90, 80), (0, 0, 90, 12), (5, 5, 12, 70)])
def test_channels_are_resized_each_by_itself(channels, box):
    image = rng_of(4).integers(0, 256, (80, 90, channels), dtype=np.uint8)
    for backend in ("fast", "pil"):
        out, one = np.empty((24, 20, channels), np.uint8), np.empty((24, 20, 3), np.uint8)
        crop_and_resize(image, box, True, out, backend)
        for c in range(channels):
            crop_and_resize(np.repeat(image[..., c : c + 1], 3, axis=-1), box, True, one, backend)
            # OpenCV's fixed-point products differ by a level between numbers of channels.
            assert np.abs(out[..., c].astype(int) - one[..., 0]).max() <= 1


def test_no_local_crops():
    views = make_views(coordinates(20, 30), ViewRecipe(global_size=8, local_count=0), rng_of(0))
    assert views.local_views.shape[0] == 0 and views.boxes.shape == (2, 4) and views.boxes.dtype == np.float32
