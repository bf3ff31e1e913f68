"""Images, boxes and masks of detection move together, in the sizes that the recipe states."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sere_jax.data.annotations.placement import MultiScale, Placement, WholeImage, place_objects
from sere_jax.data.sources.annotation import Instance
from sere_jax.data.sources.example import BadImage
from tests.data.annotations.painted import instance, scene

SMALL = MultiScale(sizes=(40, 56, 72), longest=120, before_crop=(40, 50, 60), crop_range=(30, 50))


def near(painted, reach):
    """For each pixel, whether all and whether any pixels within `reach` are painted; none is outside the image."""
    padded = np.pad(painted, reach)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * reach + 1, 2 * reach + 1))
    return windows.all(axis=(2, 3)), windows.any(axis=(2, 3))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 100_000), height=st.integers(30, 70), width=st.integers(30, 70), frame=st.sampled_from([1, 2]))
def test_masks_and_boxes_agree_with_the_colours_of_the_image(seed, height, width, frame):
    """`frame` 2: the image is stored in half the size that boxes and masks are measured in."""
    large, objects = scene(seed, frame * height, frame * width)
    image = np.ascontiguousarray(large[frame // 2 :: frame, frame // 2 :: frame])
    placement = SMALL((height, width), np.random.default_rng(seed))
    pixels = placement.image(image)
    placed = place_objects(objects, large.shape[:2], image.shape[:2], placement, count=5, masks=True, side=28)
    assert pixels.shape[:2] == placement.size and placed.boxes.shape == (5, 4) and placed.masks.shape == (5, 28, 28)
    assert not placed.boxes[~placed.valid].any() and not placed.masks[~placed.valid].any()
    # Pixels of the result that one of the stored image covers; one more for the interpolation, and of `frame` 2 one for what was skipped.
    scale = max(new / old for new, old in zip(placement.size, placement.crop[:1:-1], strict=True))
    reach = int(np.ceil(scale)) * (1 + frame) + 1
    for label in range(3):
        painted = pixels[..., label] >= 128
        everywhere, anywhere = near(painted, reach)
        rows = np.flatnonzero(placed.valid & (placed.labels == label))
        if not everywhere.any():  # outside the crop, or a sliver that the interpolation may lose
            continue
        left, top, right, bottom = box = placed.boxes[rows[0]]  # the object is there
        centres = (np.arange(28) + 0.5) / 28
        x, y = ((start + centres * (end - start)).astype(int) for start, end in ((left, right), (top, bottom)))
        mask = placed.masks[rows[0]]
        assert mask[everywhere[np.ix_(y, x)]].all() and not mask[~anywhere[np.ix_(y, x)]].any()
        shown = np.argwhere(painted)
        assert (np.abs(np.concatenate([shown.min(axis=0)[::-1], shown.max(axis=0)[::-1] + 1]) - box) <= reach).all()


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 100_000), height=st.integers(1, 900), width=st.integers(1, 900))
def test_sizes_are_those_of_the_recipe(seed, height, width):
    recipe = MultiScale()
    placement = recipe((height, width), np.random.default_rng(seed))
    left, top, across, down = placement.crop
    assert left >= 0 and top >= 0 and left + across <= width and top + down <= height and min(across, down) >= 1
    assert max(placement.size) <= 1333
    short = min(placement.size)
    assert short in recipe.sizes or max(placement.size) == 1333
    assert placement.inside((100, 200)).size[0] <= 100 and placement.inside((2000, 2000)) == placement
    if min(height, width) > 50 and max(height, width) < 2 * min(height, width):  # all sides are whole pixels
        stretch = placement.size[0] / down / (placement.size[1] / across)
        assert abs(stretch - 1) < 2 / min(down, across) + 0.006  # crop, and the sizes of 400 and more before and after it


def test_half_of_the_images_are_mirrored_and_half_are_cropped():
    recipe, rng = MultiScale(), np.random.default_rng(0)
    placements = [recipe((480, 640), rng) for _ in range(2000)]
    assert 0.46 < np.mean([one.flip for one in placements]) < 0.54
    whole = [one for one in placements if one.crop == (0, 0, 640, 480)]
    assert 0.46 < len(whole) / 2000 < 0.54
    assert {min(one.size) for one in whole} == set(range(480, 801, 32))
    cropped = np.array([one.crop[2:] for one in placements if one.crop != (0, 0, 640, 480)])
    # At 400 a crop is at least 384/400 of the height; at 600 at least 384/800 of the width.
    assert 384 / 600 * 480 - 1 <= cropped[:, 1].min() < 0.67 * 480 and 384 / 800 * 640 - 1 <= cropped[:, 0].min() < 0.52 * 640


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 100_000), flip=st.booleans())
def test_boxes_go_and_come_back(seed, flip):
    rng = np.random.default_rng(seed)
    boxes = np.sort(rng.uniform(0, 50, (4, 2, 2)), axis=1).reshape(4, 4)
    placement = Placement((3, 5, 40, 30), (61, 97), flip)
    moved = placement.boxes(boxes)
    assert (moved[:, 2:] >= moved[:, :2]).all()
    np.testing.assert_allclose(placement.back(moved), boxes, atol=1e-9)


def test_the_test_transform_keeps_proportions_below_the_longest_side():
    transform = WholeImage(256, 400)
    assert transform((480, 640)).size == (256, 341) and transform((100, 1000)).size == (40, 400) and transform((5, 5000)).size == (1, 400)
    assert transform((480, 640)) == Placement((0, 0, 640, 480), (256, 341), False)


def test_crowds_difficult_and_empty_objects_are_not_trained_on():
    box, empty = (1.0, 1.0, 9.0, 9.0), (1.0, 1.0, 9.0, 1.0)
    objects = (Instance(0, box, is_crowd=True), Instance(1, box, is_difficult=True), Instance(2, empty), Instance(3, box))
    placed = place_objects(objects, (20, 20), (20, 20), WholeImage(40, 60)((20, 20)), count=4, masks=False)
    assert placed.masks is None and placed.valid.tolist() == [True, False, False, False] and placed.labels[0] == 3
    assert placed.boxes[0].tolist() == [2, 2, 18, 18]


def test_a_box_is_drawn_anew_around_what_a_crop_leaves_of_its_mask():
    """An L of a wide foot and a narrow stem: the crop shows the stem alone. Boxes without masks are only cut."""
    mask = np.zeros((20, 20), bool)
    mask[2:18, 2:5], mask[15:18, 2:18] = True, True
    thing, crop = instance(mask, 0), Placement((0, 0, 20, 10), (20, 40))
    placed = place_objects((thing,), (20, 20), (20, 20), crop, count=1, masks=True, side=8)
    assert placed.boxes[0].tolist() == [4, 4, 10, 20] and placed.masks.all()
    assert place_objects((thing,), (20, 20), (20, 20), crop, count=1, masks=False).boxes[0].tolist() == [4, 4, 36, 20]
    beside = Placement((6, 0, 14, 14), (14, 14))  # in the box, and none of the mask
    assert not place_objects((thing,), (20, 20), (20, 20), beside, count=1, masks=True).valid.any()
    assert place_objects((thing,), (20, 20), (20, 20), beside, count=1, masks=False).valid.all()


def test_of_too_many_objects_the_largest_are_used():
    objects = tuple(Instance(i, (0.0, 0.0, float(side), 10.0)) for i, side in enumerate((3, 9, 5, 7)))
    placed = place_objects(objects, (20, 20), (20, 20), WholeImage(20, 20)((20, 20)), count=2, masks=False)
    assert placed.labels.tolist() == [1, 3] and placed.valid.all()


def test_a_mask_that_cannot_be_decoded_makes_the_image_unreadable():
    with pytest.raises(BadImage, match="a segmentation"):
        place_objects((Instance(0, (0, 0, 5, 5)),), (9, 9), (9, 9), WholeImage(9, 9)((9, 9)), count=1, masks=True)
