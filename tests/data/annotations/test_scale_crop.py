"""Segmentation's training crops: image and label map stay together, classes do not fill a crop, colours change as stated."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sere_jax.data.annotations.scale_crop import ScaleCrop, distorted, fitted
from tests.data.annotations.test_transforms import LEVELS


@settings(max_examples=60)
@given(seed=st.integers(0, 10_000), sides=st.tuples(st.integers(20, 50), st.integers(20, 50)), size=st.sampled_from([16, 32, 70]))
def test_a_map_painted_by_the_colours_of_its_image_still_agrees(seed, sides, size):
    rng = np.random.default_rng(seed)
    label_map = np.zeros(sides, np.uint16)
    label_map[rng.integers(5, 15) :] += 1
    label_map[:, rng.integers(5, 15) :] += 2
    image = np.repeat(LEVELS[label_map].astype(np.uint8)[..., None], 3, axis=2)
    crop = ScaleCrop(size, limits=(80, 40), ratios=(0.5, 2.0), distortion=False, fill=(1, 2, 3), ignored=9)
    pixels, moved = np.empty((size, size, 3), np.uint8), np.empty((size, size), np.uint16)
    crop(image, label_map, rng, pixels, moved)
    outside = moved == 9
    assert (pixels[outside] == (1, 2, 3)).all() and set(np.unique(moved)) <= {0, 1, 2, 3, 9}
    rows, columns = np.nonzero(~outside)
    assert outside.sum() == size * size - (rows.max() + 1) * (columns.max() + 1)  # below and to the right alone
    inside = moved[: rows.max() + 1, : columns.max() + 1]
    painted = np.abs(pixels[: rows.max() + 1, : columns.max() + 1, :1].astype(int) - LEVELS).argmin(axis=-1)
    for row, column in zip(*np.nonzero(painted != inside), strict=True):  # interpolation mixes colours at edges alone
        reach = 5  # a pixel of the source covers up to 4 of the result, and the interpolation one more
        around = inside[max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1]
        assert len(np.unique(around)) > 1


def test_a_crop_filled_by_one_class_is_drawn_again():
    label_map = np.zeros((40, 200), np.uint16)
    label_map[:, 80:120:2] = 1  # two classes only in the middle
    image = np.zeros((40, 200, 3), np.uint8)
    pixels, moved = np.empty((40, 40, 3), np.uint8), np.empty((40, 40), np.uint16)

    def mixed(most: float) -> int:
        crop = ScaleCrop(40, limits=(200, 40), ratios=(1.0, 1.0), most_of_a_class=most, flip_prob=0.0, distortion=False)
        count = 0
        for seed in range(60):
            crop(image, label_map, np.random.default_rng(seed), pixels, moved)
            count += 0.25 < moved.mean() < 0.75
        return count

    assert mixed(0.75) > 50 > 40 > mixed(1.0)  # 1.0 asks for two classes alone, however small one is


def test_numbers_that_no_loss_counts_do_not_fill_a_crop():
    """The left half of the map is 0 but for two classes of a twentieth each, the right half has these two alone."""
    label_map = np.zeros((40, 200), np.uint16)
    label_map[::20], label_map[1::20] = 1, 2
    label_map[:, 100::2], label_map[:, 101::2] = 1, 2
    image = np.zeros((40, 200, 3), np.uint8)
    pixels, moved = np.empty((40, 40, 3), np.uint8), np.empty((40, 40), np.uint16)

    def on_the_left(others_ignored: tuple[int, ...]) -> int:
        count = 0
        for seed in range(60):
            options = {"flip_prob": 0.0, "distortion": False, "others_ignored": others_ignored}
            crop = ScaleCrop(40, limits=(200, 40), ratios=(1.0, 1.0), **options)
            crop(image, label_map, np.random.default_rng(seed), pixels, moved)
            count += (moved == 0).mean() > 0.7
        return count

    assert on_the_left((0,)) > 15 > 6 > on_the_left(())  # where 0 is a class, it fills the crops on the left


def test_sizes_fit_the_limits_and_keep_their_proportions():
    for height, width in ((375, 500), (500, 375), (100, 4000)):
        found = fitted((height, width), (2048, 512))
        assert max(found) <= 2048 and min(found) <= 512 and (max(found) == 2048 or min(found) == 512)
        assert found[0] / found[1] == pytest.approx(height / width, rel=0.02)


def test_colours_change_within_the_stated_limits_and_grey_stays_grey():
    grey = np.full((2, 2, 3), 100, np.uint8)
    seen = np.array([distorted(grey, np.random.default_rng(seed))[0, 0] for seed in range(200)], int)
    assert (seen == seen[:, :1]).all()  # neither saturation nor hue changes grey
    assert seen.min() >= (100 - 32) * 0.5 - 1 and seen.max() <= (100 + 32) * 1.5 and len(np.unique(seen)) > 50
    unchanged = (seen[:, 0] == 100).mean()
    assert 0.1 < unchanged < 0.45  # a quarter has neither brightness nor contrast
    many = np.zeros((2, 2, 5), np.uint8)
    assert distorted(many, np.random.default_rng(0)).shape == (2, 2, 5)


def test_a_missing_map_is_an_error():
    with pytest.raises(ValueError, match="found none"):
        ScaleCrop()(np.zeros((4, 4, 3), np.uint8), None, np.random.default_rng(0), np.zeros((512, 512, 3), np.uint8), None)
