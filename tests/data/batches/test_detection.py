"""Images with objects in batches: few shapes, objects beside their image, order and replacement of pre-training."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sere_jax.data.annotations.placement import MultiScale, WholeImage, place_objects
from sere_jax.data.batches.detection import MULTIPLE, bucket_of, buckets, detection_batches
from sere_jax.data.batches.order import Stream, example_index, position_rng
from sere_jax.data.images.decode import decode
from sere_jax.data.sources.example import SourceError
from sere_jax.data.sources.with_objects import WithObjects
from sere_jax.types import DetectionBatch
from tests.data.annotations.painted import Painted

SMALL = MultiScale(sizes=(40, 56, 72), longest=96, before_crop=(40, 50), crop_range=(30, 50))
SHAPES = buckets(72, 96, 16)


def batches(source, **options):
    values = {"placing": SMALL, "shapes": SHAPES, "seed": 3, "batch_size": 4, "total_steps": 5, "prefetch": 0, "count": 4, "side": 12}
    return list(detection_batches(source, **(values | options)))


def arrays(batch):
    return [array for array in (*batch.objects, batch.images, batch.sizes, batch.index, batch.replaced) if array is not None]


def same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        for x, y in zip(arrays(a), arrays(b), strict=True):
            assert x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()


def test_a_row_is_what_its_definition_says():
    source = WithObjects(Painted(crowds=(2, 5)))
    shapes = set()
    for step, batch in enumerate(batches(source)):
        placements = []
        for row in range(4):
            position = 4 * step + row
            example = source[example_index(3, position, 12, 4)]
            assert batch.index[row] == example_index(3, position, 12, 4)
            shape = example.annotation.frame
            placement = SMALL(shape, position_rng(3, position, Stream.VIEWS))
            placements.append(placement.size)
            height, width = batch.sizes[row]
            assert placement.size == (height, width)
            np.testing.assert_array_equal(batch.images[row, :height, :width], placement.image(decode(example.data)))
            assert not batch.images[row, height:].any() and not batch.images[row, :, width:].any()
            expected = place_objects(example.annotation.instances, shape, shape, placement, count=4, masks=True, side=12)
            for array, values in zip(batch.objects, expected, strict=True):
                np.testing.assert_array_equal(array[row], values)
        assert batch.images.shape[1:3] == bucket_of(placements, SHAPES) and not batch.replaced.any()
        assert (batch.objects.valid.sum(axis=1) <= 3).all()  # a crowd would be the fourth
        shapes.add(batch.images.shape[1:3])
    assert len(shapes) > 1


@given(size=st.integers(32, 900), longer=st.floats(1, 3), seed=st.integers(0, 1000))
def test_buckets_are_few_multiples_of_32_that_hold_every_size(size, longer, seed):
    longest = int(size * longer)
    shapes = buckets(size, longest)
    assert 1 <= len(shapes) <= 6 and all(side % MULTIPLE == 0 for shape in shapes for side in shape)
    rng = np.random.default_rng(seed)
    sizes = [WholeImage(size, longest)(tuple(rng.integers(1, 500, 2).tolist())).size for _ in range(3)]
    height, width = bucket_of(sizes, shapes)
    assert all(size[0] <= height and size[1] <= width for size in sizes)
    smaller = [shape for shape in shapes if shape[0] * shape[1] < height * width]
    assert not any(all(size[0] <= h and size[1] <= w for size in sizes) for h, w in smaller)


def test_processes_restarts_and_other_buckets_change_nothing_else():
    """Each of two processes finds the bucket of the whole batch."""
    source = WithObjects(Painted())
    run = batches(source)
    halves = [batches(source, process_index=i, process_count=2) for i in range(2)]
    for whole, *parts in zip(run, *halves, strict=True):
        for array, first, second in zip(arrays(whole), *map(arrays, parts), strict=True):
            np.testing.assert_array_equal(array, np.concatenate([first, second]))
    same(batches(source, start_step=3), run[3:])
    same(batches(source, prefetch=2), run)


@pytest.mark.slow
def test_workers_change_nothing():
    source = WithObjects(Painted())
    same(batches(source, workers=2), batches(source))


def test_images_without_objects_are_left_out_and_counted(caplog):
    assert len(WithObjects(Painted(lost=(5,)))) == 11 and "item 5 cannot be read and is left out: record 5 is damaged" in caplog.text
    source = WithObjects(Painted(without=(1, 4), crowds=(2,)))
    assert len(source) == 10 and source.without == 2 and source.others == 1 and source.masks
    assert {source[i].name for i in range(10)} == {f"{i}.png" for i in range(12) if i not in (1, 4)}
    assert source.notes() == (
        "2 of 12 images have no object to train on and are left out",
        "1 objects are not trained on: crowds, difficult ones and empty boxes",
    )
    np.testing.assert_array_equal(source.frames[:3], [(60, 40), (42, 60), (60, 43)])
    with pytest.raises(SourceError, match="none of 3 images has an object to train on"):
        WithObjects(Painted(count=3, without=(0, 1, 2)))
    with pytest.raises(SourceError, match="has no objects; expected a prepared set"):
        WithObjects(Painted(object_classes=None))


def test_what_cannot_be_read_is_replaced_and_still_fits(caplog):
    run = batches(WithObjects(Painted(damaged=(0, 3))), total_steps=6)
    assert sum(batch.replaced.sum() for batch in run) >= 2
    assert not {0, 3} & {int(index) for batch in run for index in batch.index}
    for batch in run:
        assert (batch.sizes <= batch.images.shape[1:3]).all() and batch.sizes.min() > 0
        valid = batch.objects.boxes[batch.objects.valid]
        assert (valid[:, 2:] - valid[:, :2] >= 1).all()
    assert len([line for line in caplog.messages if "is replaced" in line]) == 2


def test_boxes_alone_need_no_masks_and_half_of_them_are_refused():
    source = WithObjects(Painted(boxes_alone=tuple(range(12))))
    assert not source.masks
    [batch] = batches(source, masks=False, total_steps=1)
    assert isinstance(batch, DetectionBatch) and batch.objects.masks is None and batch.objects.valid.any()
    with pytest.raises(ValueError, match="boxes without masks"):
        batches(source)
    with pytest.raises(SourceError, match=r"1 of 12 images have objects with and without masks, the first is '4.png'"):
        WithObjects(Painted(boxes_alone=(4,)))
    some = WithObjects(Painted(boxes_alone=(4,)), masks=False)
    assert len(some) == 12 and not some.masks
    [batch] = batches(some, masks=False, total_steps=1)
    assert batch.objects.masks is None and batch.objects.valid.any()


def test_more_objects_than_fit_are_told_and_unknown_sizes_take_the_largest_bucket(caplog):
    source = WithObjects(Painted())
    with caplog.at_level(logging.WARNING):
        [batch] = batches(source, count=2, total_steps=1)
    assert batch.objects.valid.shape == (4, 2) and "images have more than 2 objects" in caplog.text
    usual = [batch.images.shape[1:3] for batch in batches(source)]
    unknown = example_index(3, 5, 12, 4)  # an example of the second step
    source.frames[unknown] = 1
    steps = [{example_index(3, 4 * step + row, 12, 4) for row in range(4)} for step in range(5)]
    expected = [SHAPES[-1] if unknown in step else shape for step, shape in zip(steps, usual, strict=True)]
    assert [batch.images.shape[1:3] for batch in batches(source)] == expected != usual
    source.frames = np.ones_like(source.frames)  # a set that states boxes as shares
    assert {batch.images.shape[1:3] for batch in batches(source)} == {SHAPES[-1]}
