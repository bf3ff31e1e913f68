"""Samples of more than 8 bits: one meaning of black, white and range whatever the format, its layout and its compression."""

from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from sere_jax.data.images.decode import BadImage, decode
from sere_jax.data.images.reading import ImageReading
from tests.data.images.corpus import png_chunk
from tests.data.images.images import encode, gradient

RNG = np.random.default_rng(7)
GREY = RNG.integers(0, 4096, (8, 10)).astype(np.uint16)
RGB = RNG.integers(0, 4096, (8, 10, 3)).astype(np.uint16)
RANGE = (0.0, 4095.0)


def tiff(array, **options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


def compressed(array, code) -> bytes:
    return cv2.imencode(".tiff", array[..., ::-1] if array.ndim == 3 else array, [cv2.IMWRITE_TIFF_COMPRESSION, code])[1].tobytes()


def png(array, interlaced=False, drop=0) -> bytes:
    """A PNG made by hand, rows unfiltered; `drop` rows are left out at the end."""
    height, width = array.shape[:2]
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[array.reshape(height, width, -1).shape[2]]
    depth = 8 * array.dtype.itemsize
    passes = (
        ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
        if interlaced
        else ((0, 0, 1, 1),)
    )
    parts = [array[top::down, left::across] for top, left, down, across in passes]
    rows = [b"\0" + row.astype(f">u{array.dtype.itemsize}").tobytes() for part in parts if part.size for row in part]
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    pixels = zlib.compress(b"".join(rows[: len(rows) - drop]))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")


def pnm(array, white, *, text=False) -> bytes:
    kind = (3 if array.ndim == 3 else 2) if text else (6 if array.ndim == 3 else 5)
    body = b" ".join(b"%d" % value for value in array.ravel()) if text else array.astype(">u2").tobytes()
    return b"P%d # made by hand\n%d %d\n%d\n" % (kind, array.shape[1], array.shape[0], white) + body


GREYS = {
    "PNG": png(GREY),
    "PNG with alpha": png(np.dstack([GREY, GREY[::-1]])),
    "PNG, interlaced": png(GREY, interlaced=True),
    "PGM": pnm(GREY, 65535),
    "PGM as text": pnm(GREY, 65535, text=True),
    "TIFF": tiff(GREY),
    "TIFF, big-endian": tiff(GREY, byteorder=">"),
    "TIFF, deflate, predictor": tiff(GREY, compression="zlib", predictor=True),
    "TIFF, LZW": compressed(GREY, 5),
    "TIFF, tiles": tiff(GREY, tile=(16, 16)),
    "TIFF of three pages": tiff(np.stack([GREY, GREY // 2, GREY // 3]), photometric="minisblack"),
    "TIFF, 32 bits": tiff(GREY.astype(np.uint32)),
    "TIFF, signed": tiff(GREY.astype(np.int16)),
    "TIFF, float": tiff(GREY.astype(np.float32)),
    "TIFF, half floats": tiff(GREY.astype(np.float16)),
    "TIFF, doubles, LZW": compressed(GREY.astype(np.float64), 5),
}
COLOURS = {
    "PNG": png(RGB),
    "PNG with alpha": png(np.dstack([RGB, GREY])),
    "PPM": pnm(RGB, 65535),
    "PPM as text": pnm(RGB, 65535, text=True),
    "TIFF": tiff(RGB, photometric="rgb"),
    "TIFF, planes": tiff(np.moveaxis(RGB, -1, 0).copy(), photometric="rgb", planarconfig="separate"),
    "TIFF, LZW": compressed(RGB, 5),
    "TIFF, float, LZW": compressed(RGB.astype(np.float32), 5),
    "TIFF, three bands": tiff(RGB, photometric="minisblack", planarconfig="contig"),
    "TIFF with alpha": tiff(np.dstack([RGB, GREY]), photometric="rgb", extrasamples=["unassalpha"]),
}
OTHER_TYPES = ("TIFF, 32 bits", "TIFF, signed", "TIFF, float", "TIFF, half floats", "TIFF, doubles, LZW")
UNSIGNED = [name for name in GREYS if name not in OTHER_TYPES]


def expected_levels(samples, low, high):
    """Rounded half up, in whole numbers: (2 * 255 (x - low) + (high - low)) // (2 (high - low))."""
    x = np.clip(samples.astype(np.int64), low, high) - low
    return (2 * 255 * x + (high - low)) // (2 * (high - low))


@pytest.mark.parametrize("name", GREYS)
def test_a_range_applies_to_every_grey_file(name):
    levels = expected_levels(GREY, 0, 4095)
    if name == "TIFF, half floats":  # 11 bits of precision
        levels = expected_levels(GREY.astype(np.float16).astype(np.int64), 0, 4095)
    np.testing.assert_array_equal(decode(GREYS[name], ImageReading(channels=1, value_range=RANGE))[..., 0], levels)
    np.testing.assert_array_equal(decode(GREYS[name], ImageReading(value_range=RANGE)), np.repeat(levels[..., None], 3, -1))


@pytest.mark.parametrize("name", COLOURS)
def test_a_range_applies_to_every_colour_file(name):
    np.testing.assert_array_equal(decode(COLOURS[name], ImageReading(value_range=RANGE)), expected_levels(RGB, 0, 4095))


@pytest.mark.parametrize("name", GREYS)
def test_without_a_range_unsigned_16_bits_are_scaled_and_others_refused(name):
    if name not in UNSIGNED:
        with pytest.raises(BadImage, match="no agreed range"):
            decode(GREYS[name])
        return
    np.testing.assert_array_equal(decode(GREYS[name], ImageReading(channels=1))[..., 0], expected_levels(GREY, 0, 65535))


@pytest.mark.parametrize("name", [name for name in COLOURS if "float" not in name])
def test_16_bit_colour_is_rounded_not_cut(name):
    np.testing.assert_array_equal(decode(COLOURS[name]), expected_levels(RGB, 0, 65535))


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("white", [256, 4095, 65535])
def test_white_of_a_pnm_is_its_maxval(white, text):
    samples = (RGB.astype(np.int64) * white // 4095).astype(np.uint16)
    np.testing.assert_array_equal(decode(pnm(samples, white, text=text)), expected_levels(samples, 0, white))
    ranged = decode(pnm(samples, white, text=text), ImageReading(value_range=(10.0, 200.0)))
    np.testing.assert_array_equal(ranged, expected_levels(samples, 10, 200))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("ranged", [False, True])
def test_min_is_white_is_inverted_at_any_depth(dtype, ranged):
    samples = np.array([[0, 50, 200, 255]]).astype(dtype)
    if dtype is np.float32 and not ranged:
        return
    reading = ImageReading(channels=1, value_range=(0.0, 255.0) if ranged else (0.0, 0.0))
    black = decode(tiff(samples, photometric="minisblack"), reading).astype(int)
    white = decode(tiff(samples, photometric="miniswhite"), reading).astype(int)
    np.testing.assert_array_equal(white, 255 - black)
    assert black.max() > black.min() or dtype is np.uint16


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("value_range", [(0.0, 0.0), (0.0, 255.0)])
def test_both_tiff_readers_agree_on_8_bits(channels, value_range):
    """A range of (0, 255) changes nothing, but takes the way of exact samples."""
    grey, rgb = gradient(8, 10)[..., 0], gradient(8, 10, blue=9)
    files = {
        "grey": (tiff(grey), grey[..., None]),
        "white is zero": (tiff(grey, photometric="miniswhite"), 255 - grey[..., None]),
        "white is zero, LZW": (encode(grey, "TIFF", compression="tiff_lzw", tiffinfo={262: 0}), grey[..., None]),  # Pillow inverts
        "RGB, LZW": (encode(rgb, "TIFF", compression="tiff_lzw"), rgb),
        "RGB planes": (tiff(np.moveaxis(rgb, -1, 0).copy(), photometric="rgb", planarconfig="separate"), rgb),
        "RGB, alpha": (tiff(np.dstack([rgb, grey]), photometric="rgb", extrasamples=["unassalpha"]), rgb),
        "three grey pages": (tiff(np.stack([grey, 255 - grey, grey]), photometric="minisblack"), grey[..., None]),
        "turned by its tag": (encode(rgb, "TIFF", tiffinfo={274: 6}), rgb),
        "packbits": (encode(rgb, "TIFF", compression="packbits"), rgb),
    }
    for name, (data, pixels) in files.items():
        if channels == 1 and pixels.shape[2] == 3:
            red, green, blue = np.moveaxis(pixels.astype(np.int64), -1, 0)
            pixels = ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16)[..., None]
        found = decode(data, ImageReading(channels=channels, value_range=value_range))
        np.testing.assert_array_equal(found, np.broadcast_to(pixels, found.shape), err_msg=name)


def test_signed_and_mixed_samples_are_refused():
    with pytest.raises(BadImage, match="int8 have no agreed range"):
        decode(tiff(GREY.astype(np.int8)))
    data = tiff(RGB.astype(np.uint8), photometric="rgb")
    mixed = data.replace(struct.pack("<3H", 8, 8, 8), struct.pack("<3H", 8, 8, 16))
    assert mixed != data
    for value_range in ((0.0, 0.0), RANGE):
        with pytest.raises(BadImage, match="mixed bits a sample: 8, 8, 16"):
            decode(mixed, ImageReading(value_range=value_range))


def looping(pages: int, back_to: int) -> bytes:
    """A TIFF of `pages` tiny grey pages; the last one links to page `back_to`."""
    directory = 2 + 12 * 9 + 4
    offsets = [8 + i * (directory + 4) for i in range(pages)]
    data = b"II*\0" + struct.pack("<I", 8)
    for number, offset in enumerate(offsets):
        pixels = offset + directory
        tags = [(256, 4, 2), (257, 4, 2), (258, 3, 8), (259, 3, 1), (262, 3, 1)]
        tags += [(273, 4, pixels), (277, 3, 1), (278, 4, 2), (279, 4, 4)]
        link = offsets[number + 1] if number + 1 < pages else offsets[back_to]
        data += (
            struct.pack("<H", 9)
            + b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
            + struct.pack("<I", link)
        )
        data += bytes([1, 2, 3, 4])
    return data


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize(("pages", "back_to"), [(1, 0), (2, 0), (5, 0), (5, 3)])
def test_pages_that_link_in_a_circle_end(channels, pages, back_to):
    for value_range in ((0.0, 0.0), RANGE):
        with pytest.raises(BadImage, match="circle"):
            decode(looping(pages, back_to), ImageReading(channels=channels, value_range=value_range))


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("drop", [1, 4])
def test_a_png_with_too_few_rows_is_bad(dtype, interlaced, drop):
    pixels = gradient(9, 7).astype(dtype)
    np.testing.assert_array_equal(decode(png(pixels, interlaced)), pixels if dtype is np.uint8 else expected_levels(pixels, 0, 65535))
    with pytest.raises(BadImage, match="too few pixels"):
        decode(png(pixels, interlaced, drop))


@pytest.mark.parametrize("backend", ["fast", "pil"])
@pytest.mark.parametrize("factors", [(0x42, 0x11, 0x11), (0x24, 0x11, 0x11), (0x22, 0x21, 0x11), (0x22, 0x12, 0x21)])
def test_jpegs_of_unusual_sampling_are_read(factors, backend):
    """A scan written by hand, with the standard Huffman codes: every block is DC 0 and the end, so that all pixels are 128."""
    data = bytearray(encode(np.full((32, 32, 3), 128, np.uint8), "JPEG", quality=90))
    frame, scan = data.index(b"\xff\xc0"), data.index(b"\xff\xda")
    for component, factor in enumerate(factors):
        data[frame + 11 + 3 * component] = factor
    wide, high = (8 * max(factor >> 4 if side else factor & 15 for factor in factors) for side in (1, 0))
    blocks = [(factor >> 4) * (factor & 15) for factor in factors]
    unit = "001010" * blocks[0] + "0000" * (blocks[1] + blocks[2])  # DC 0, end of block: 00 1010 in luma, 00 00 in chroma
    bits = unit * (-(-32 // wide) * -(-32 // high))
    bits += "1" * (-len(bits) % 8)
    entropy = int(bits, 2).to_bytes(len(bits) // 8, "big")
    sound = bytes(data[: scan + 2 + int.from_bytes(data[scan + 2 : scan + 4], "big")]) + entropy + b"\xff\xd9"
    assert (decode(sound, ImageReading(backend=backend)) == 128).all()


def test_a_tiny_file_cannot_claim_a_huge_picture():
    gif = b"GIF89a" + struct.pack("<HHBBB", 6000, 6000, 0, 0, 0) + b"," + struct.pack("<HHHHB", 0, 0, 6000, 6000, 0) + b"\x02\x01\0\0;"
    with pytest.raises(BadImage, match="more than any sound file holds"):
        decode(gif)


@given(
    st.sampled_from(sorted(GREYS)),
    st.integers(0, 400),
    st.integers(0, 255),
    st.sampled_from([(0.0, 0.0), RANGE]),
    st.sampled_from([1, 3, 5]),
)
def test_any_changed_byte_gives_pixels_or_a_bad_image(name, place, value, value_range, channels):
    data = bytearray(GREYS[name])
    data[place % len(data)] = value
    try:
        found = decode(bytes(data), ImageReading(channels=channels, max_pixels=10_000, value_range=value_range))
    except BadImage:
        return
    assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == channels
