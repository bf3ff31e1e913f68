from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from sere_jax.data.images import deep
from sere_jax.data.images.decode import BadImage, decode
from sere_jax.data.images.reading import ImageReading
from tests.data.annotations.pngs import png
from tests.data.images.images import encode, gradient

BACKENDS = ["fast", "pil"]
PIXELS = gradient(40, 60, blue=30)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("file_format", ["PNG", "BMP", "PPM", "TIFF"])
def test_lossless_formats_come_out_as_they_went_in(file_format, backend):
    out = decode(encode(PIXELS, file_format), ImageReading(backend=backend))
    np.testing.assert_array_equal(out, PIXELS)
    assert out.dtype == np.uint8


def test_the_fast_jpeg_decoder_is_bit_identical_to_pillow():
    noise = np.random.default_rng(0).integers(0, 256, (47, 61, 3), dtype=np.uint8)
    for pixels in (PIXELS, noise, noise[:, :, 0]):
        for options in ({"quality": 90}, {"quality": 40, "progressive": True}):
            data = encode(pixels, "JPEG", **options)
            np.testing.assert_array_equal(decode(data, ImageReading(backend="fast")), decode(data, ImageReading(backend="pil")))


@pytest.mark.parametrize(
    ("colour", "bits", "transparent"),
    [(0, bits, extra) for bits in (1, 2, 4, 8) for extra in (b"", b"\0\1")]
    + [(3, bits, extra) for bits in (1, 2, 4, 8) for extra in (b"", b"\0\x80")]
    + [(2, 8, b""), (2, 8, b"\0\1\0\2\0\3"), (4, 8, b""), (6, 8, b"")],
)
def test_png_of_every_kind_is_what_pillow_makes_of_it(colour, bits, transparent):
    """OpenCV decodes them; transparency is dropped, and no kind falls back to Pillow."""
    rng = np.random.default_rng(bits)
    samples = {0: 1, 3: 1, 2: 3, 4: 2, 6: 4}[colour]
    for size in ((1, 1), (5, 7), (17, 33)):
        palette = rng.bytes(3 * 2**bits) if colour == 3 else b""
        data = png(rng.integers(0, 2**bits, (*size, samples)), bits, colour, palette=palette, transparent=transparent)
        with Image.open(io.BytesIO(data)) as picture:
            expected = np.asarray(picture.convert("RGBA").convert("RGB"))
        found = deep.decode_png(data, deep.png_header(data, 10**6))
        assert found is not None and (found == expected).all() and (decode(data) == expected).all()


def test_a_png_longer_than_opencv_allows_is_decoded():
    length = 2**20 + 5
    assert decode(png(np.full((1, length), 9), 8, 0)).shape == (1, length, 3)


def test_a_png_with_missing_rows_is_refused():
    with pytest.raises(BadImage, match="too few pixels: 17 of 34 bytes"):
        decode(png(np.zeros((1, 16), int), 8, 0).replace(struct.pack(">I", 1), struct.pack(">I", 2), 1))


def with_transparency():
    picture = Image.fromarray(PIXELS).quantize(32)
    picture.info["transparency"] = 3
    return picture


# What each mode should look like as RGB, with a tolerance in levels.
MODES = {
    "grey": (Image.fromarray(PIXELS[..., 0]), np.repeat(PIXELS[..., :1], 3, 2), 0),
    "black and white": (Image.fromarray(PIXELS[..., 0] > 99), np.repeat((PIXELS[..., :1] > 99) * np.uint8(255), 3, 2), 0),
    "grey with alpha": (
        Image.merge("LA", [Image.fromarray(PIXELS[..., 0]), Image.fromarray(PIXELS[..., 1])]),
        np.repeat(PIXELS[..., :1], 3, 2),
        0,
    ),
    "alpha": (Image.merge("RGBA", [Image.fromarray(PIXELS[..., i]) for i in (0, 1, 2, 0)]), PIXELS, 0),
    "palette": (Image.fromarray(PIXELS).quantize(256), PIXELS, 24),  # 256 colours of a smooth gradient
    "palette with transparency": (with_transparency(), PIXELS, 70),  # 32 colours
    "16-bit grey": (Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257), np.repeat(PIXELS[..., :1], 3, 2), 0),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_rgb(mode, backend):
    picture, expected, tolerance = MODES[mode]
    out = decode(encode(picture), ImageReading(backend=backend))
    assert out.shape == (40, 60, 3) and out.dtype == np.uint8
    assert np.abs(out.astype(int) - expected.astype(int)).max() <= tolerance


@pytest.mark.parametrize("backend", BACKENDS)
def test_cmyk_jpeg(backend):
    data = encode(Image.fromarray(np.full((16, 16, 3), (200, 60, 30), np.uint8)).convert("CMYK"), "JPEG", quality=95)
    assert np.abs(decode(data, ImageReading(backend=backend)).astype(int) - (200, 60, 30)).max() < 12  # JPEG at quality 95


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_an_exif_orientation_turns_nothing(file_format, backend):
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees"
    turned = decode(encode(PIXELS, file_format, exif=exif), ImageReading(backend=backend))
    np.testing.assert_array_equal(turned, decode(encode(PIXELS, file_format), ImageReading(backend=backend)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_animation_gives_its_first_frame(backend):
    frames = [Image.fromarray(np.full((8, 8), level, np.uint8)) for level in (10, 200)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert (decode(buffer.getvalue(), ImageReading(backend=backend)) == 10).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "BMP", "PPM", "GIF", "TIFF", "WEBP"])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.3, 0.6, 0.9])
def test_a_file_that_is_cut_short_is_bad(file_format, backend, kept):
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encode(noise, file_format)
    with pytest.raises(BadImage):
        decode(data[: int(kept * len(data))], ImageReading(backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8", b"\xff\xd8\xff\xe0" + b"\0" * 200, b"<html>not found</html>", b"P6 0 0 255\n", b"\0" * 4096]
)
def test_what_is_no_image_is_bad(data, backend):
    with pytest.raises(BadImage):
        decode(data, ImageReading(backend=backend))


def png_header(width, height):
    """A PNG that claims a size and holds no pixels."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + chunk(b"IDAT", b"")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("width", [8_000, 10_000, 60_000])  # 64, 100 and 3600 megapixels: below and above Pillow's own limits
def test_too_many_pixels_are_refused_from_the_header(width, backend):
    with pytest.raises(BadImage, match="pixels"):
        decode(png_header(width, width), ImageReading(backend=backend))
    with pytest.raises(BadImage, match="max_pixels"):
        decode(encode(PIXELS, "JPEG"), ImageReading(backend=backend, max_pixels=40 * 60 - 1))
    assert decode(encode(PIXELS, "JPEG"), ImageReading(backend=backend, max_pixels=40 * 60)).shape == (40, 60, 3)
