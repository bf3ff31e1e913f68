"""Images with classes and label maps in batches: order, replacement and spreading are those of pre-training."""

from __future__ import annotations

import numpy as np
import pytest

from sere_jax.commands import prepare
from sere_jax.data.annotations.transforms import RandomCrop, crop_map
from sere_jax.data.batches.labelled import LabelledBatch, LabelledRow, labelled_batches
from sere_jax.data.batches.order import Stream, example_index, position_rng
from sere_jax.data.crops.views import sample_box
from sere_jax.data.images.decode import BadImage
from sere_jax.data.sources.example import Example
from sere_jax.data.sources.open import open_source
from tests.data.annotations.pngs import png
from tests.data.images.images import encode, gradient

CROP = RandomCrop(size=8, scale=(0.3, 1.0))
PALETTE = bytes(range(255, -1, -1)) * 3


def batches(source, **options):
    return list(labelled_batches(source, **({"transform": CROP, "maps": True, "seed": 3, "batch_size": 4, "total_steps": 5} | options)))


def classes_of(height, width, number):
    """A label map that says where a pixel is: 50 classes of rows, a border of 255, and the image's number in a corner."""
    found = np.tile((np.arange(height) % 50)[:, None], (1, width))
    found[:, -1] = 255
    found[0, 0] = 100 + number
    return found


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    """11 images in two classes with palette maps; the map of one is damaged, of another too small, and one image is no image."""
    root = tmp_path_factory.mktemp("labelled")
    for i in range(11):
        height, width = 20 + i, 30 - i
        for directory, data in (
            ("images", encode(gradient(height, width, blue=i))),
            ("maps", png(classes_of(height - (i == 6), width, i), 8, 3, palette=PALETTE)),
        ):
            path = root / directory / ("cat" if i % 2 else "dog") / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data[:50] if (directory, i) in (("maps", 4), ("images", 9)) else data)
    return f"masks:{root / 'maps'}:folder:{root / 'images'}"


def same(first, second):
    for a, b in zip(first, second, strict=True):
        for x, y in zip(a, b, strict=True):
            assert (x is None) == (y is None) and (x is None or (x.dtype == y.dtype and x.tobytes() == y.tobytes()))


def test_a_row_is_what_its_definition_says(spec):
    source = open_source(spec)
    run = batches(source)
    for step, batch in enumerate(run):
        for row in range(4):
            position = 4 * step + row
            assert (batch.index[row] == example_index(3, position, 11, 4)) != batch.replaced[row]
            index = int(batch.index[row])
            number = int(source[index].name[-6:-4])
            height, width = 20 + number, 30 - number
            rng = position_rng(3, position, Stream.VIEWS)
            box = sample_box(height, width, (0.3, 1.0), CROP.aspect, rng)
            expected = crop_map(classes_of(height, width, number).astype(np.uint16), box, bool(rng.random() < 0.5), (8, 8))
            np.testing.assert_array_equal(batch.label_maps[row], expected)
            assert (batch.images[row, ..., 2] == number).all() and batch.labels[row] == (1 - number % 2)
    assert sum(batch.replaced.sum() for batch in run) >= 3
    assert run[0].images.shape == (4, 8, 8, 3) and run[0].label_maps.dtype == np.uint16


def test_what_cannot_be_read_is_replaced_and_told_once(spec, caplog):
    run = batches(open_source(spec), total_steps=8)
    numbers = {int(batch.images[row, 0, 0, 2]) for batch in run for row in range(4)}
    assert numbers.isdisjoint({4, 6, 9})
    told = [record.getMessage() for record in caplog.records if "is replaced" in record.getMessage()]
    assert len(told) == len(set(told)) == 3 and any("14 x" not in line and "with a label map of" in line for line in told)


def test_an_image_and_its_map_stay_together(spec):
    """Each pixel of the crop says its row: green in the image, the class in the map."""
    big = RandomCrop(size=24, scale=(0.5, 1.0), backend="pil")
    for batch in batches(open_source(spec), transform=big, total_steps=2):
        for image, label_map in zip(batch.images, batch.label_maps, strict=True):
            height = 20 + int(image[0, 0, 2])
            inside = label_map < 50
            rows = image[..., 1].astype(float) * (height - 1) / 255  # levels back to rows
            assert np.abs(rows - label_map)[inside].max() <= 1.5  # half a pixel of the nearest neighbour, one of the bicubic's overshoot


def test_processes_and_restarts_change_nothing(spec):
    source = open_source(spec)
    run = batches(source)
    halves = [batches(source, process_index=i, process_count=2) for i in range(2)]
    same([LabelledBatch(*(np.concatenate(parts) for parts in zip(*pair, strict=True))) for pair in zip(*halves, strict=True)], run)
    same(batches(source, start_step=3), run[3:])
    same(batches(source, prefetch=0), run)


def test_repeated_images_follow_each_other_in_other_crops(spec):
    """Two batches of four an epoch, three copies: images A A A B, B B C C; the next epoch begins anew."""
    inner = spec.split(":", 2)[2]
    run = batches(open_source(inner), maps=False, repeats=3, total_steps=4)
    order = np.concatenate([[example_index(3, epoch * 8 + place, 11, 4) for place in (0, 0, 0, 1, 1, 1, 2, 2)] for epoch in (0, 1)])
    index, replaced = (np.concatenate([getattr(batch, name) for batch in run]) for name in ("index", "replaced"))
    assert ((index == order) | replaced).all() and not replaced.all()
    images = np.concatenate([batch.images for batch in run])
    assert len({image.tobytes() for image in images}) == 16
    same(batches(open_source(inner), maps=False, repeats=3, start_step=2, total_steps=4), run[2:])


@pytest.mark.slow
def test_workers_change_nothing(spec):
    source = open_source(spec)
    same(batches(source, workers=2), batches(source))


def test_images_with_classes_need_no_maps(spec):
    inner = spec.split(":", 2)[2]
    run = batches(open_source(inner), maps=False)
    assert run[0].label_maps is None and set(np.concatenate([batch.labels for batch in run])) == {0, 1}
    with pytest.raises(ValueError, match="has no label maps; expected masks:DIR:SOURCE"):
        batches(open_source(inner))


def test_what_prepare_writes_is_read_again(spec, tmp_path):
    """Class numbers of a palette through 16-bit maps in shards: the batches are the same but for examples that were left out."""
    assert prepare.main([f"--source={spec}", f"--output={tmp_path / 'out'}", "--max_bad_fraction=0.5"]) == 0
    prepared = open_source(f"tfds:{tmp_path / 'out'}:train")
    assert len(prepared) == 8
    for batch in batches(prepared, total_steps=2):
        assert not batch.replaced.any()
        for image, label_map in zip(batch.images, batch.label_maps, strict=True):
            assert set(label_map.ravel()) <= {*range(50), 255, 100 + int(image[0, 0, 2])}


def test_crop_map_is_the_pixel_under_each_centre():
    numbers = np.arange(35, dtype=np.uint16).reshape(5, 7)
    for box, shape in (((1, 2, 5, 3), (6, 4)), ((0, 0, 7, 5), (5, 7)), ((6, 4, 1, 1), (3, 3))):
        left, top, width, height = box
        for flip in (False, True):
            found = crop_map(numbers, box, flip, shape)
            for i in range(shape[0]):
                for j in range(shape[1]):
                    x = (j + 0.5) * width / shape[1]
                    x = width - x if flip else x
                    column = int(np.ceil(x) - 1) if flip else int(x)  # a centre on an edge belongs to the pixel on its other side
                    assert found[i, j] == numbers[top + int((i + 0.5) * height / shape[0]), left + column]


def test_an_image_without_a_class_is_replaced_where_classes_are_wanted():
    row = LabelledRow(CROP)
    example = Example("test/1.png", encode(gradient(20, 30)), -1)
    with pytest.raises(BadImage, match="it has no class"):
        row.read(example)
    assert row.read(example._replace(label=3)).label == 3
