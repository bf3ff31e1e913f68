"""The number that is stored is the class, whatever the file's bits and colours."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sere_jax.data.annotations.maps import decode_label_map, palette_of
from sere_jax.data.images.decode import BadImage
from tests.data.annotations.pngs import png
from tests.data.images.images import encode, gradient

CLASSES = np.array([[0, 1, 2], [255, 2, 0]])
COLOURS = bytes(range(255, -1, -1)) * 3  # far from the identity
KINDS = [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (3, 1), (3, 2), (3, 4), (3, 8)]  # grey or palette, bits


@given(st.sampled_from(KINDS), st.integers(1, 9), st.integers(0, 99))
def test_grey_and_palette_of_every_depth_give_the_stored_numbers(kind, width, seed):
    colour, bits = kind
    samples = np.random.default_rng(seed).integers(0, 2**bits, (3, width))
    palette = COLOURS[: 3 * 2**bits] if colour == 3 else b""
    found = decode_label_map(png(samples, bits, colour, palette=palette))
    assert found.dtype == np.uint16 and (found == samples).all()


def test_the_colours_of_a_palette_are_told_and_others_have_none():
    data = png(CLASSES, 8, 3, palette=COLOURS)
    assert palette_of(data) == COLOURS
    assert palette_of(png(CLASSES, 8, 0)) == palette_of(data[:40]) == palette_of(b"no picture") == b""


def test_a_palette_of_classes_and_a_border_keeps_both():
    assert decode_label_map(png(CLASSES, 8, 3, palette=COLOURS)).tolist() == CLASSES.tolist()
    assert decode_label_map(png(CLASSES, 8, 3, palette=COLOURS, transparent=b"\0\x80")).tolist() == CLASSES.tolist()


def test_red_and_green_make_one_number_where_that_is_said():
    numbers = np.array([[0, 300], [1000, 919]])
    pixels = np.stack([numbers % 256, numbers // 256, np.zeros_like(numbers)], -1)
    assert decode_label_map(png(pixels, 8, 2), coding="red_green").tolist() == numbers.tolist()
    with pytest.raises(BadImage, match="a label map in RGB of 8 bits, expected grey or palette"):
        decode_label_map(png(pixels, 8, 2))


@pytest.mark.parametrize(
    ("data", "coding", "message"),
    [
        (png(np.zeros((2, 2, 3), int), 16, 2), "red_green", "RGB of 16 bits, expected RGB of 8 bits"),
        (png(CLASSES, 8, 0), "red_green", "grey of 8 bits, expected RGB"),
        (png(CLASSES, 8, 3, palette=COLOURS), "red_green", "palette of 8 bits, expected RGB"),
        (png(np.zeros((2, 2, 2), int), 8, 4), "index", "grey with transparency"),
        (png(np.zeros((2, 2, 4), int), 8, 6), "index", "RGB with transparency"),
        (encode(gradient(4, 4), "JPEG"), "index", "no PNG"),
        (b"", "index", "no PNG"),
        (png(CLASSES, 8, 0)[:-20], "index", "cut short"),
    ],
)
def test_what_is_no_exact_map_is_refused_by_name(data, coding, message):
    with pytest.raises(BadImage, match=message):
        decode_label_map(data, coding=coding)


def test_the_pixel_cap_holds_for_maps():
    with pytest.raises(BadImage, match="max_pixels"):
        decode_label_map(png(CLASSES, 8, 0), max_pixels=5)
