"""Images of other numbers of channels: arrays, TIFF bands and grey pictures, to the level; and what is refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from sere_jax.data.images.decode import BadImage, decode
from sere_jax.data.images.reading import BACKENDS, ImageReading
from tests.data.images.images import encode, gradient

BANDS = np.random.default_rng(0).integers(0, 256, (6, 9, 5), dtype=np.uint8)


def npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def tiff(array, **options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, photometric="minisblack", **options)
    return buffer.getvalue()


PLANES = np.ascontiguousarray(np.moveaxis(BANDS, -1, 0))
SAME_BANDS = {
    "npy": npy(BANDS),
    "npy, planes": npy(PLANES),
    "npy, Fortran's order": npy(np.asfortranarray(BANDS)),
    "npy, big-endian 16 bits": npy(BANDS.astype(">u2") * 257),
    "TIFF": tiff(BANDS, planarconfig="contig"),
    "TIFF, planes": tiff(PLANES, planarconfig="separate"),
    "TIFF, pages": tiff(PLANES, metadata=None),
    "TIFF, deflate, big-endian": tiff(BANDS, planarconfig="contig", compression="zlib", byteorder=">"),
    "TIFF, tiles": tiff(BANDS, planarconfig="contig", tile=(16, 16)),
    "BigTIFF, 16 bits": tiff(BANDS.astype(np.uint16) * 257, planarconfig="contig", bigtiff=True),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SAME_BANDS)
def test_bands_are_read_as_they_are_stored(name, backend):
    found = decode(SAME_BANDS[name], ImageReading(backend=backend, channels=5))
    assert found.dtype == np.uint8 and found.flags.c_contiguous
    np.testing.assert_array_equal(found, BANDS)


def test_a_range_of_values_becomes_the_levels():
    values = np.array([[-5.0, 0.0, 2.0], [100.0, 200.0, 1e9]], np.float32)[..., None] * np.ones(4, np.float32)
    # 255 (x - 0) / 200, rounded half up, clipped: 2 -> 2.55, 100 -> 127.5
    expected = np.array([[0, 0, 3], [128, 255, 255]])[..., None] * np.ones(4)
    for data in (npy(values), tiff(values, planarconfig="contig")):
        np.testing.assert_array_equal(decode(data, ImageReading(channels=4, value_range=(0.0, 200.0))), expected)
    signed = npy(np.array([[-100, 0, 100]], np.int16))
    np.testing.assert_array_equal(decode(signed, ImageReading(channels=1, value_range=(-100.0, 100.0)))[..., 0], [[0, 128, 255]])
    coloured = tiff(np.stack([values[..., 0]] * 3, -1), planarconfig="contig")  # refused without a range
    np.testing.assert_array_equal(decode(coloured, ImageReading(channels=3, value_range=(0.0, 200.0))), expected[..., :3])


@pytest.mark.parametrize(
    ("data", "channels", "message"),
    [
        (npy(BANDS), 4, "6 x 9 x 5, expected H x W x 4 or 4 x H x W"),
        (npy(BANDS[0]), 3, "9 x 5, expected H x W x 3"),
        (npy(np.zeros((3, 4, 5, 5))), 5, "3 x 4 x 5 x 5, expected"),
        (npy(np.zeros((0, 4, 5), np.uint8)), 5, "0 x 4 x 5, expected"),
        (npy(BANDS.astype(np.float32)), 5, "float32 have no agreed range; data.value_range"),
        (npy(BANDS.astype(np.int16)), 5, "int16 have no agreed range"),
        (npy(BANDS.astype(object)), 5, "expected numbers"),
        (npy(np.array([["a"]])), 1, "expected whole or floating-point numbers"),
        (npy(BANDS)[:-1], 5, "cut short: 269 of 270 bytes"),
        (npy(np.zeros((1, 1, 5), np.uint8)).replace(b"(1, 1, 5)", b"(70000, 70000, 5)"), 5, "max_pixels"),
        (tiff(BANDS, planarconfig="contig"), 4, "expected H x W x 4"),
        (tiff(BANDS, planarconfig="contig", compression="zlib")[:-200], 5, "."),
        (b"II*\0" + bytes(40), 5, "."),
        (encode(gradient(8, 8)), 5, "expected one of 5 channels"),
        (encode(gradient(8, 8), "JPEG"), 2, "expected one of 2 channels"),
    ],
)
def test_what_cannot_be_read(data, channels, message):
    with pytest.raises(BadImage, match=message):
        decode(data, ImageReading(channels=channels))


def test_samples_that_are_not_finite_are_refused():
    holes = np.ones((4, 4, 2), np.float32)
    holes[1, 1, 0] = np.nan
    for data in (npy(holes), tiff(holes, planarconfig="contig")):
        with pytest.raises(BadImage, match="not finite"):
            decode(data, ImageReading(channels=2, value_range=(0.0, 1.0)))


def test_a_cut_tiff_is_refused_wherever_it_is_cut():
    data = tiff(BANDS, planarconfig="contig")
    for end in range(8, len(data) - 1, 7):
        with pytest.raises(BadImage):
            decode(data[:end], ImageReading(channels=5))


@given(st.sampled_from(sorted(SAME_BANDS)), st.integers(0, 400), st.integers(0, 255))
def test_any_changed_byte_gives_bands_or_a_bad_image(name, place, value):
    data = bytearray(SAME_BANDS[name])
    data[place % len(data)] = value
    try:
        found = decode(bytes(data), ImageReading(channels=5, max_pixels=10_000))
    except BadImage:
        return
    assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 5


def array_file(header: str, version: bytes = b"\1\0") -> bytes:
    size = len(header).to_bytes(2 if version == b"\1\0" else 4, "little")
    return b"\x93NUMPY" + version + size + header.encode("latin1") + bytes(100)


@pytest.mark.parametrize("shape", ["(-1, 1, 1)", "(1, -100)", "(True, 1)", "(-2, -2)", "(0, 0)"])
def test_an_array_whose_sides_are_no_lengths_is_refused(shape):
    data = array_file(f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}")
    with pytest.raises(BadImage, match="samples of shape|header"):
        decode(data, ImageReading(channels=1))


def test_no_advice_to_run_code_is_passed_on():
    header = "{'descr': '|u1', 'fortran_order': False, 'shape': (1, 1)}" + " " * 20_000
    with pytest.raises(BadImage, match="header") as caught:
        decode(array_file(header, b"\2\0"))
    assert "allow" not in str(caught.value) and "trust" not in str(caught.value)


def test_values_of_many_pieces_are_those_of_one():
    values = np.arange(3 << 20, dtype=np.uint16).reshape(3, 1 << 10, 1 << 10)
    found = decode(npy(values))
    np.testing.assert_array_equal(found, np.moveaxis(np.floor(values / 257 + 0.5), 0, -1))


def test_the_cost_of_a_tiff_is_bounded_by_its_parts():
    strips = tiff(np.zeros((150_000, 1), np.uint8), rowsperstrip=1)
    with pytest.raises(BadImage, match="150,000 strips"):
        decode(strips)
    with pytest.raises(BadImage, match="1,100 pages, expected 5 bands"):
        decode(tiff(np.zeros((1100, 1, 1), np.uint8), metadata=None), ImageReading(channels=5))
