from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from PIL import Image

from sere_jax.data.batches.whole_images import eval_batches, resize_and_centre_crop
from sere_jax.data.sources.open import open_source
from tests.data.images.images import MemorySource, gradient
from tests.oracles import crops


def batches(source, **options):
    return list(eval_batches(source, **({"size": 8, "resize": 10, "batch_size": 4} | options)))


def joined(parts):
    return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


def test_every_example_once_in_order_and_the_last_batch_padded():
    parts = batches(MemorySource(10))
    assert [part.images.shape for part in parts] == [(4, 8, 8, 3)] * 3
    images, labels, index, valid = joined(parts)
    np.testing.assert_array_equal(index, [*range(10), -1, -1])
    np.testing.assert_array_equal(valid, [True] * 10 + [False] * 2)
    np.testing.assert_array_equal(images[:10, 4, 4, 2], np.arange(10))
    assert (images[10:] == 0).all() and (labels == -1).all()


def test_labels_are_the_sources():
    source = open_source("bundled:query")
    part = next(eval_batches(source, size=8, resize=8, batch_size=20))
    np.testing.assert_array_equal(part.labels, [region.label for region in source.regions[:20]])


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_processes_together_yield_the_same_rows(workers, count):
    whole = batches(MemorySource(9))
    shares = [batches(MemorySource(9), process_index=i, process_count=count, workers=workers) for i in range(count)]
    assert {len(share) for share in shares} == {3}
    for step, part in enumerate(whole):
        for a, b in zip(part, joined([share[step] for share in shares]), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_left_out_and_logged(workers, caplog):
    _, _, index, valid = joined(batches(MemorySource(6, bad=[1], missing=[4]), workers=workers))
    np.testing.assert_array_equal(index[:6], range(6))
    np.testing.assert_array_equal(valid, [True, False, True, True, False, True, False, False])
    assert "image 1" in caplog.text and "no file 4" in caplog.text


@pytest.mark.parametrize(("height", "width", "resize", "size"), [(40, 60, 16, 14), (61, 40, 16, 16), (10, 13, 16, 9), (16, 16, 16, 16)])
def test_resize_and_crop_against_the_naive_statement(height, width, resize, size):
    image = np.clip(gradient(height, width, 90), 40, 210)
    shorter = min(height, width)
    rows, columns = (resize if side == shorter else int(resize * side / shorter) for side in (height, width))
    top, left = round((rows - size) / 2), round((columns - size) / 2)
    expected = crops.resize(image, rows, columns, crops.bicubic_weights)[top : top + size, left : left + size]
    out = resize_and_centre_crop(image, resize, size)
    assert out.shape == (size, size, 3)
    assert np.abs(out - expected).max() <= 1.15  # rounding after each pass


def test_an_unreadable_image_is_logged_once_while_its_source_is_open(caplog):
    source = MemorySource(6, bad=[1])
    for _ in range(3):
        batches(source)
    assert caplog.text.count("cannot be read and is left out") == 1
    batches(MemorySource(6, bad=[1]))
    assert caplog.text.count("cannot be read and is left out") == 2


@pytest.mark.parametrize(("height", "width"), [(5, 300), (300, 5), (7, 128)])
def test_of_elongated_images_the_crop_alone_is_resized(height, width):
    image = np.random.default_rng(0).integers(80, 176, (height, width, 3), dtype=np.uint8)  # no overshoot is clipped between the passes
    shorter = min(height, width)
    rows, columns = (16 if side == shorter else int(16 * side / shorter) for side in (height, width))
    top, left = round((rows - 14) / 2), round((columns - 14) / 2)
    whole = np.asarray(Image.fromarray(image).resize((columns, rows), Image.Resampling.BICUBIC))[top : top + 14, left : left + 14]
    # Pillow's box is in float32, and the passes may come in the other order: roundings differ.
    assert np.abs(resize_and_centre_crop(image, 16, 14).astype(int) - whole).max() <= 1


def test_a_line_of_pixels_takes_little_memory():
    """1 x 40000 pixels, resized whole, would be 256 x 10 million: 8 GB."""
    for image in (np.full((1, 40_000, 3), 7, np.uint8), np.full((40_000, 1, 1), 7, np.uint8)):
        tracemalloc.start()
        out = resize_and_centre_crop(image, 256, 224)
        assert tracemalloc.get_traced_memory()[1] < 50e6
        tracemalloc.stop()
        assert out.shape == (224, 224, image.shape[2]) and (out == 7).all()


def test_settings_that_cannot_be():
    with pytest.raises(ValueError, match="multiple of the 3 processes"):
        eval_batches(MemorySource(3), size=8, resize=8, batch_size=4, process_count=3)
    with pytest.raises(ValueError, match="resize is 7"):
        eval_batches(MemorySource(3), size=8, resize=7, batch_size=4)
