"""Masks of polygons and run lengths are those of COCO's own tools, and wrong ones are refused before native code sees them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sere_jax.data.annotations.regions import decode_region, encode_region, region_fault
from sere_jax.data.sources.example import BadImage

coco = pytest.importorskip("pycocotools.mask")


def theirs(segmentation, height, width):
    """The mask as pycocotools decodes it."""
    runs = coco.frPyObjects(segmentation, height, width)
    return coco.decode(coco.merge(runs) if isinstance(runs, list) else runs).astype(bool)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), height=st.integers(1, 40), width=st.integers(1, 40), digits=st.integers(0, 2))
def test_polygons_are_filled_as_coco_fills_them(data, height, width, digits):
    """Also those that cross themselves, lie on each other, or reach outside."""
    corner = st.tuples(st.floats(-0.9 * width, 1.9 * width), st.floats(-0.9 * height, 1.9 * height))
    polygons = [
        [round(number, digits) for point in points for number in point]
        for points in data.draw(st.lists(st.lists(corner, min_size=3, max_size=7), min_size=1, max_size=3))
    ]
    np.testing.assert_array_equal(decode_region(json.dumps(polygons), height, width), theirs(polygons, height, width))


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10_000), height=st.integers(1, 70), width=st.integers(1, 70), share=st.sampled_from([0.0, 0.02, 0.5, 1.0]))
def test_run_lengths_are_coco_s_there_and_back(seed, height, width, share):
    mask = np.random.default_rng(seed).random((height, width)) < share
    encoded = encode_region(mask)
    expected = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert encoded == {"size": expected["size"], "counts": expected["counts"].decode()}
    np.testing.assert_array_equal(decode_region(encoded, height, width), mask)
    columns = mask.T.ravel()
    changes = [0, *np.flatnonzero(columns[1:] != columns[:-1]) + 1, mask.size]
    runs = [int(run) for run in np.diff(changes)]
    plain = {"counts": [0, *runs] if columns[0] else runs, "size": [height, width]}
    np.testing.assert_array_equal(decode_region(json.dumps(plain), height, width), mask)
    np.testing.assert_array_equal(theirs(plain, height, width), mask)


WRONG = {
    "no JSON": ("[[1, 2", "no JSON"),
    "a word": ('"polygon"', "expected polygons or run lengths"),
    "nothing": ([], "expected polygons or run lengths"),
    "two corners": ([[0, 0, 1, 1]], "at least three corners"),
    "an odd number": ([[0, 0, 1, 1, 2, 2, 3]], "at least three corners"),
    "text in a polygon": ([[0, 0, 1, 1, 2, "a"]], "corners outside"),
    "not a number": ([[0, 0, 1, 1, 2, float("nan")]], "corners outside"),
    "far away": ([[0, 0, 1, 1, 2, 1e9]], "corners outside the image of 6 x 4 pixels"),
    "another size": ({"counts": [24], "size": [6, 4]}, r"\[4, 6\]"),
    "no counts": ({"size": [4, 6]}, "expected 'counts'"),
    "no size": ({"counts": [24], "size": None}, "expected 'counts'"),
    "too many pixels": ({"counts": [10, 20], "size": [4, 6]}, "run lengths of 30 pixels in all, expected the 24"),
    "too few pixels": ({"counts": [10], "size": [4, 6]}, "run lengths of 10 pixels"),
    "negative runs": ({"counts": [30, -6], "size": [4, 6]}, "none negative"),
    "fractions": ({"counts": [1.5, 22.5], "size": [4, 6]}, "whole numbers"),
    "endless": ({"counts": [float("inf")], "size": [4, 6]}, "whole numbers"),
    "a number as size": ({"counts": [24], "size": 24}, "expected 'counts'"),
    "a number": ({"counts": 24, "size": [4, 6]}, "whole numbers"),
    "a text cut short": ({"counts": "P", "size": [4, 6]}, "COCO's text"),
    "an endless number": ({"counts": "o" * 100, "size": [4, 6]}, "COCO's text"),
    "other letters": ({"counts": "é!", "size": [4, 6]}, "COCO's text"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_segmentation_is_refused_with_what_was_found(case):
    segmentation, message = WRONG[case]
    with pytest.raises(BadImage, match=message):
        decode_region(segmentation, 4, 6)
    assert isinstance(segmentation, str) or region_fault(segmentation, 4, 6)


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=12))
def test_any_text_is_a_mask_or_refused(text):
    region = {"counts": text, "size": [3, 5]}
    if not region_fault(region, 3, 5):
        np.testing.assert_array_equal(decode_region(region, 3, 5), coco.decode({"counts": text.encode(), "size": [3, 5]}).astype(bool))
