"""PBM, PGM and PPM, against samples that are written out here."""

import contextlib
import time

import numpy as np
import pytest

from sere_jax.data.images.decode import decode
from sere_jax.data.images.reading import ImageReading
from sere_jax.data.sources.example import BadImage

GREY = ImageReading(channels=1)


@pytest.mark.parametrize(
    ("data", "levels"),
    {
        "PBM as text, digits that touch": (b"P1 3 2\n0 1 0\n101", [[255, 0, 255], [0, 255, 0]]),
        "PBM with a comment": (b"P1\n# 2 2\n3 1 # text\n0#1 1 1\n10", [[255, 0, 255]]),
        "PBM": (b"P4 10 2\n" + bytes([0b10100000, 0b01000000, 0, 0]), [[0, 255, 0] + 6 * [255] + [0], 10 * [255]]),
        "PGM as text": (b"P2 3 1 255\n0 7 255", [[0, 7, 255]]),
        "PGM of two levels as text": (b"P2 3 1 1\n0 1 0", [[0, 255, 0]]),
        "PGM of 100 levels": (b"P5 3 1 100\n" + bytes([0, 50, 100]), [[0, 128, 255]]),
        "PGM of 255 levels": (b"P5\n3\t1 255\n" + bytes([0, 10, 255]), [[0, 10, 255]]),
        "PGM of 511 levels": (b"P5 2 1 511 " + bytes([0, 51, 1, 255]), [[25, 255]]),
    }.values(),
)
def test_levels(data, levels):
    np.testing.assert_array_equal(decode(data, GREY)[..., 0], levels)


def test_colour_and_text_of_many_pieces():
    samples = np.random.default_rng(0).integers(0, 256, (600, 500, 3), np.uint8)
    text = b"P3 500 600 255\n" + b"\n".join(b"  %d" % sample for sample in samples.ravel())
    assert len(text) > 3 << 20
    np.testing.assert_array_equal(decode(text), samples)
    np.testing.assert_array_equal(decode(b"P6 500 600 255\n" + samples.tobytes()), samples)


def test_a_value_range_is_of_more_than_8_bits_only():
    ranged = ImageReading(channels=1, value_range=(0.0, 510.0))
    assert decode(b"P2 1 1 255\n51", ranged).item() == 51
    assert decode(b"P2 1 1 511\n102", ranged).item() == 51


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"P2 2 1 65535\n1 nan", "no whole number"),
        (b"P2 2 1 255\n1 2.5", "no whole number"),
        (b"P2 2 1 255\n-1 2", "no whole number"),
        (b"P2 2 1 255\n1 300", "up to 300, above its white of 255"),
        (b"P2 2 1 255\n1 " + b"9" * 400, "up to inf, above"),
        (b"P5 2 1 100\n" + bytes([0, 200]), "up to 200, above its white of 100"),
        (b"P2 2 2 255\n1 2 3", "3 of 4 samples"),
        (b"P6 2 2 255\nabc", "3 of 12 bytes"),
        (b"P4 16 2\nabc", "3 of 4 bytes"),
        (b"P1 2 1\n12", "zeros and ones"),
        (b"P1 2 2\n101", "zeros and ones"),
        (b"P5 2 1 0\nab", "white of 0"),
        (b"P5 2 1 65536\nabcd", "white of 65536"),
        (b"P5 2 1 2555", "cut short"),
        (b"P6", "header"),
        (b"P6 99999999999999 1 255 ", "header"),
    ],
)
def test_what_is_refused(data, reason):
    with pytest.raises(BadImage, match=reason):
        decode(data)


@pytest.mark.parametrize(
    "data",
    {
        "blanks": b"P5" + b" " * 3000 + b"x",
        "comments": b"P5" + b"#\n" * 1500 + b"x",
        "megabytes of blanks": b"P5" + b" " * 4_000_000 + b"x",
        "comments in the text": b"P3 1 1 255\n" + b"#\n" * 500_000 + b"1 2 3",
        "one long number": b"P2 9 9 65535\n" + b"1" * 4_000_000,
        "one long number in the header": b"P2 " + b"1" * 4_000_000,
    }.values(),
)
def test_no_text_takes_long(data):
    begin = time.process_time()
    with contextlib.suppress(BadImage):
        decode(data)
    assert time.process_time() - begin < 1.0
