from __future__ import annotations

import numpy as np
import pytest

from sere_jax.data.images.decode import decode
from sere_jax.data.sources import bundled
from sere_jax.data.sources.example import SourceError
from sere_jax.data.sources.open import open_source


def covered(split):
    """Which pixels of every photograph some region of a split shows."""
    masks = [np.zeros((photograph.height, photograph.width), bool) for photograph in bundled.PHOTOGRAPHS]
    for label, left, top, side in bundled.regions(split):
        assert left >= 0 and top >= 0
        region = masks[label][top : top + side, left : left + side]
        assert region.shape == (side, side)
        region[...] = True
    return masks


def test_splits_share_no_pixel_and_leave_none_of_their_photographs_out():
    train, gallery, query = (covered(split) for split in bundled.SPLITS)
    for a, b, c in zip(train, gallery, query, strict=True):
        assert (a.astype(int) + b + c).max() == 1
        assert a.mean() > 0.3 and b.mean() > 0.1 and c.mean() > 0.1  # of 1/2, 1/4 and 1/4 at most: squares in oblong cells


def test_sizes_and_balance():
    for split, least in (("train", 80), ("gallery", 55), ("query", 55)):
        source = open_source(f"bundled:{split}")
        labels = [region.label for region in source.regions]
        count = bundled.REGIONS_PER_PHOTOGRAPH[split]
        assert len(source) == count * len(source.classes)
        np.testing.assert_array_equal(np.bincount(labels), np.full(len(source.classes), count))
        assert min(region.side for region in source.regions) >= least
    assert len(set(source.classes)) == len(source.classes)
    assert open_source("bundled").split == "train"


def test_regions_are_the_photographs_pixels_and_the_same_every_time():
    source = open_source("bundled:train")
    for index in (0, 5, 700):
        label, left, top, side = source.regions[index]
        example = source[index]
        assert example.label == label and example == source[index]
        with open(bundled.photograph_file(bundled.PHOTOGRAPHS[label]), "rb") as file:
            photograph = decode(file.read())
        np.testing.assert_array_equal(decode(example.data), photograph[top : top + side, left : left + side])


def test_every_photograph_has_the_size_that_the_list_says():
    for label in range(len(bundled.PHOTOGRAPHS)):
        bundled._photograph_pixels(label)


def test_query_colours_are_jittered_by_the_region_and_not_by_the_run():
    query = open_source("bundled:query")
    changes = []
    for index in range(40):
        label, left, top, side = query.regions[index]
        plain = bundled._photograph_pixels(label)[top : top + side, left : left + side].astype(float)
        changes.append((decode(query[index].data) - plain).mean((0, 1)))
        assert query[index].data == open_source("bundled:query")[index].data
    assert np.abs(changes).mean() > 10 and np.ptp(changes) > 60


def naive_jitter(pixels, brightness, contrast, saturation, turn):
    """Hue about the grey axis, then saturation, contrast about the mean grey, brightness, one after the other in float64."""
    axis = np.ones(3) / np.sqrt(3)
    cross = np.cross(np.broadcast_to(axis, pixels.shape), pixels)
    along = (pixels @ axis)[..., None] * axis
    turned = pixels * np.cos(turn) + cross * np.sin(turn) + along * (1 - np.cos(turn))
    # Saturation blends with the grey of the picture before the turn, so that brightness stays where the photograph had it.
    grey = (pixels @ [0.299, 0.587, 0.114])[..., None]
    stretched = saturation * turned + (1 - saturation) * grey
    return brightness * (contrast * stretched + (1 - contrast) * grey.mean())


def test_jitter_is_the_composition_of_its_four_parts():
    pixels = np.random.default_rng(0).integers(60, 160, (12, 9, 3), dtype=np.uint8)
    rng = np.random.default_rng(4)
    brightness, contrast, saturation = (1 + bundled.JITTER[key] * rng.uniform(-1, 1) for key in ("brightness", "contrast", "saturation"))
    turn = 2 * np.pi * bundled.JITTER["hue"] * rng.uniform(-1, 1)
    expected = np.clip(naive_jitter(pixels.astype(float), brightness, contrast, saturation, turn), 0, 255)
    assert (
        np.abs(bundled.colour_jitter(pixels, np.random.default_rng(4)) - expected).max() <= 0.75
    )  # one rounding, after OpenCV's fixed-point sums


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(bundled.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SourceError, match="pip install scikit-image"):
        open_source("bundled")
