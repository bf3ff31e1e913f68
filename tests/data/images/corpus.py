"""Malformed and odd image files, made from nothing, each with what must become of it.

`python -m tests.data.images.corpus` prints the table of docs/data.md.

What each picture should look like is known from how it was made, or for lossy formats from OpenCV's decoder, which nothing
of sere_jax uses to decode.
"""

from __future__ import annotations

import functools
import io
import struct
import zlib
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageCms

HEIGHT, WIDTH = 48, 64

AS_STORED = "decoded, pixels as stored"
FIRST = "the first frame, page or picture is decoded"
GREY = "decoded: grey in three channels; 16 bits scaled to 8"
ALPHA = "decoded, transparency dropped"
INKS = "decoded by (255 - ink) (255 - black) / 255"
NO_IMAGE = "replaced: no image of a known format"
DAMAGED = "replaced: damaged or cut short"
NO_RANGE = "replaced: samples without an agreed range"
TOO_LARGE = "replaced: refused by its header, in less than 50 ms and 64 MB"


class Case(NamedTuple):
    """One file. `expected` is None where it must be refused; else pixels must be within `tolerance` levels of it."""

    name: str
    outcome: str
    data: bytes
    expected: np.ndarray | None = None
    tolerance: int = 0


@functools.cache
def photograph() -> np.ndarray:
    """Smooth, with edges and a little noise, so that every coder has something to do. Levels 8..247."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    pixels = np.stack([columns * 3 + 20, rows * 4 + 20, (rows + columns) * 2], -1)
    pixels[10:30, 20:40] = (200, 60, 40)
    noise = np.random.default_rng(0).integers(-8, 9, pixels.shape)
    return np.clip(pixels + noise, 8, 247).astype(np.uint8)


def save(picture, file_format, **options):
    buffer = io.BytesIO()
    picture = picture.copy() if isinstance(picture, Image.Image) else Image.fromarray(np.ascontiguousarray(picture))
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


def by_opencv(data):
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    return cv2.imdecode(np.frombuffer(data, np.uint8), flags)[:, :, ::-1]


def grey3(level):
    return np.repeat(np.asarray(level, np.uint8)[:, :, None], 3, 2)


def insert(data, at, *pieces):
    return data[:at] + b"".join(pieces) + data[at:]


def jpeg_segments(kind, body, count):
    return (b"\xff" + bytes([kind]) + struct.pack(">H", len(body) + 2) + body) * count


def png_chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width, height, pixels=b""):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")


def tiff(width, height, extra=()):
    """A little-endian TIFF header with one directory and no pixels."""
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
    tags += [(277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, 1), *extra]
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)


def with_size_in_header(jpeg, width, height):
    at = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:at] + struct.pack(">HH", height, width) + jpeg[at + 4 :]


def jpegs():
    pixels = photograph()
    plain = save(pixels, "JPEG", quality=90)
    files = {
        "JPEG": plain,
        "progressive JPEG": save(pixels, "JPEG", quality=90, progressive=True),
        "JPEG 4:4:4": save(pixels, "JPEG", quality=90, subsampling=0),
        "JPEG with restart markers": save(pixels, "JPEG", quality=90, restart_marker_blocks=3),
        "JPEG of quality 1": save(pixels, "JPEG", quality=1),
        "JPEG followed by junk": plain + b"junk" * 1000,
        "JPEG turned by EXIF": save(pixels, "JPEG", quality=90, exif=_exif(6)),
        "JPEG mirrored by EXIF": save(pixels, "JPEG", quality=90, exif=_exif(2)),
        "JPEG with 4 MB of EXIF": insert(plain, 2, jpeg_segments(0xE1, b"Exif\0\0" + bytes(64000), 64)),
        "JPEG with damaged EXIF": insert(plain, 2, jpeg_segments(0xE1, b"Exif\0\0II*\0\xff\xff\xff\x7f" + b"\xff" * 90, 1)),
        "JPEG with a JPEG inside its comment": insert(plain, 2, jpeg_segments(0xFE, plain[:3000], 1)),
        "JPEG with a colour profile": save(pixels, "JPEG", quality=90, icc_profile=ImageCms.ImageCmsProfile(_profile()).tobytes()),
    }
    for name in ("4:1:1", "4:4:0", "4:2:2"):
        sampling = getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{name.replace(':', '')}")
        files[f"JPEG {name}"] = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling])[1].tobytes()
    return [Case(name, AS_STORED, data, by_opencv(data), 2) for name, data in files.items()]


def _profile():
    return ImageCms.createProfile("sRGB")


def _exif(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def other_formats():
    pixels = photograph()
    files = {
        "PNG": save(pixels, "PNG"),
        "PNG turned by EXIF": save(pixels, "PNG", exif=_exif(6)),
        "PNG with a long comment": insert(save(pixels, "PNG"), 33, png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(1 << 19)))),
        "BMP": save(pixels, "BMP"),
        "BMP from the top": _top_down(save(pixels, "BMP")),
        "PPM": save(pixels, "PPM"),
        "PPM as text": b"P3 64 48 255\n" + b" ".join(b"%d" % level for level in pixels.ravel()),
        "TIFF": save(pixels, "TIFF"),
        "TIFF, LZW": save(pixels, "TIFF", compression="tiff_lzw"),
        "TIFF, deflate": save(pixels, "TIFF", compression="tiff_adobe_deflate"),
        **{f"TIFF with orientation {turn}": save(pixels, "TIFF", tiffinfo={274: turn}) for turn in (2, 3, 5, 6, 8)},
        "WebP, lossless": save(pixels, "WEBP", lossless=True),
    }
    cases = [Case(name, AS_STORED, data, pixels) for name, data in files.items()]
    lossy = save(pixels, "WEBP", quality=80)
    cases.append(Case("WebP", AS_STORED, lossy, by_opencv(lossy), 2))
    colours = Image.fromarray(pixels).quantize(64)
    cases += [
        Case("palette PNG", AS_STORED, save(colours, "PNG"), np.asarray(colours.convert("RGB"))),
        Case("palette BMP", AS_STORED, save(colours, "BMP"), np.asarray(colours.convert("RGB"))),
        Case("GIF", AS_STORED, save(colours, "GIF"), np.asarray(colours.convert("RGB"))),
    ]
    for name, height, width in (("1 x 1", 1, 1), ("1 x 10000", 10000, 1), ("10000 x 1", 1, 10000)):
        thin = np.resize(pixels.reshape(-1, 3), (height, width, 3))
        cases += [Case(f"{name} PNG", AS_STORED, save(thin, "PNG"), thin)]
        data = save(thin, "JPEG", quality=90)
        cases += [Case(f"{name} JPEG", AS_STORED, data, by_opencv(data), 2)]
    return cases


def _top_down(bmp):
    """Negative height; the rows, of 64 x 3 bytes without padding, in reverse."""
    start = struct.unpack("<I", bmp[10:14])[0]
    rows = [bmp[start + i * WIDTH * 3 : start + (i + 1) * WIDTH * 3] for i in range(HEIGHT)]
    return bmp[:22] + struct.pack("<i", -HEIGHT) + bmp[26:start] + b"".join(rows[::-1])


def several():
    pixels = photograph()
    first, second = Image.fromarray(pixels), Image.fromarray(255 - pixels)
    rest = {"save_all": True, "append_images": [second]}
    few = first.quantize(32)
    mpo = save(first, "MPO", quality=90, save_all=True, append_images=[second.copy()])  # Pillow leaves its options in the picture
    return [
        Case("animated GIF", FIRST, save(few, "GIF", **rest), np.asarray(few.convert("RGB"))),
        Case("animated WebP", FIRST, save(first, "WEBP", lossless=True, **rest), pixels),
        Case("animated PNG", FIRST, save(first, "PNG", **rest), pixels),
        Case("TIFF of several pages", FIRST, save(first, "TIFF", **rest), pixels),
        Case("MPO (two JPEGs)", FIRST, mpo, by_opencv(mpo), 2),
    ]


def greys():
    level = photograph()[:, :, 0]
    deep = level.astype(np.uint16) * 257
    jpeg = save(level, "JPEG", quality=90)
    wide = np.ascontiguousarray(photograph()[:, :, ::-1].astype(np.uint16) * 257)
    return [
        Case("grey JPEG", GREY, jpeg, by_opencv(jpeg), 2),
        Case("grey PNG", GREY, save(level, "PNG"), grey3(level)),
        Case("grey TIFF", GREY, save(level, "TIFF"), grey3(level)),
        Case("PGM", GREY, save(level, "PPM"), grey3(level)),
        Case("black and white PNG", GREY, save(Image.fromarray(level > 99), "PNG"), grey3((level > 99) * 255)),
        Case("black and white TIFF, fax", GREY, save(Image.fromarray(level > 99), "TIFF", compression="group4"), grey3((level > 99) * 255)),
        Case("16-bit grey PNG", GREY, save(deep, "PNG"), grey3(level)),
        Case("16-bit grey TIFF", GREY, save(deep, "TIFF"), grey3(level)),
        Case("16-bit PGM", GREY, b"P5 64 48 65535\n" + deep.astype(">u2").tobytes(), grey3(level)),
        Case("16-bit PNG", GREY, cv2.imencode(".png", wide)[1].tobytes(), photograph()),
        Case("16-bit TIFF", GREY, cv2.imencode(".tiff", wide)[1].tobytes(), photograph()),
    ]


def transparent():
    pixels = photograph()
    bands = [Image.fromarray(np.ascontiguousarray(pixels[:, :, i])) for i in (0, 1, 2, 0)]
    rgba, colours = Image.merge("RGBA", bands), Image.fromarray(pixels).quantize(32)
    opaque = np.asarray(colours.convert("RGB"))
    return [
        Case("PNG with alpha", ALPHA, save(rgba, "PNG"), pixels),
        Case("grey PNG with alpha", ALPHA, save(Image.merge("LA", bands[:2]), "PNG"), grey3(pixels[:, :, 0])),
        Case("palette PNG with a transparent colour", ALPHA, save(colours, "PNG", transparency=3), opaque),
        Case("GIF with a transparent colour", ALPHA, save(colours, "GIF", transparency=3), opaque),
        Case("WebP with alpha", ALPHA, save(rgba, "WEBP", lossless=True, exact=True), pixels),
        Case("TIFF with alpha", ALPHA, save(rgba, "TIFF"), pixels),
    ]


def inks():
    ink = np.dstack([255 - photograph(), np.full((HEIGHT, WIDTH), 30, np.uint8)])
    picture = Image.frombytes("CMYK", (WIDTH, HEIGHT), ink.tobytes())
    expected = np.round((255.0 - ink[:, :, :3]) * (255 - 30) / 255).astype(np.uint8)
    # A JPEG of flat inks, so that its losses stay below the tolerance.
    flat = Image.new("CMYK", (WIDTH, HEIGHT), (40, 120, 200, 30))
    colour = np.round((255.0 - np.array([40, 120, 200])) * (255 - 30) / 255).astype(np.uint8)
    return [
        Case("CMYK TIFF", INKS, save(picture, "TIFF"), expected, 2),
        Case("CMYK JPEG", INKS, save(flat, "JPEG", quality=100), np.broadcast_to(colour, (HEIGHT, WIDTH, 3)), 2),
    ]


def not_images():
    zipped = b"PK\x03\x04" + bytes(200)
    files = {
        "an empty file": b"",
        "one byte": b"\xff",
        "the first bytes of a JPEG": b"\xff\xd8\xff\xe0",
        "the first bytes of a PNG": b"\x89PNG\r\n\x1a\n",
        "the first bytes of a GIF": b"GIF89a",
        "the first bytes of a WebP": b"RIFF\x10\0\0\0WEBPVP8 ",
        "the first bytes of a TIFF": b"II*\0\x08\0\0\0",
        "HTML": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n",
        "zeros": bytes(5000),
        "random bytes": np.random.default_rng(1).bytes(5000),
        "a ZIP archive": zipped,
        "PDF": b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n",
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n",
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "an icon": save(photograph(), "ICO"),
        "a NumPy array": b"\x93NUMPY\x01\0v\0"
        + b"{'descr': '|u1', 'fortran_order': False, 'shape': (2, 2), }".ljust(117)
        + b"\n"
        + bytes(4),
        "a picture of 0 x 0": b"P6 0 0 255\n",
        "a JPEG without a picture": b"\xff\xd8" + jpeg_segments(0xE0, b"JFIF\0" + bytes(9), 1) + b"\xff\xd9",
    }
    return [Case(name, NO_IMAGE, data) for name, data in files.items()]


def damaged():
    noise = np.random.default_rng(2).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    whole = {name: save(noise, name) for name in ("JPEG", "PNG", "BMP", "PPM", "TIFF", "WEBP")}
    whole["GIF"] = save(Image.fromarray(noise).quantize(256), "GIF")
    whole["progressive JPEG"] = save(noise, "JPEG", progressive=True)
    whole["TIFF, deflate"] = save(noise, "TIFF", compression="tiff_adobe_deflate")
    cases = [Case(f"half of a {name}", DAMAGED, data[: len(data) // 2]) for name, data in whole.items()]
    jpeg, pixels = whole["JPEG"], whole["PNG"]
    middle, flipped = len(jpeg) // 2, len(pixels) // 2
    files = {
        "JPEG without its last bytes": jpeg[:-8],
        "JPEG with zeros in the middle": jpeg[:middle] + bytes(200) + jpeg[middle + 200 :],
        "JPEG with 500 bytes missing": jpeg[:middle] + jpeg[middle + 500 :],
        "JPEG that ends in the middle": jpeg[:middle] + b"\xff\xd9" + jpeg[middle + 2 :],
        "progressive JPEG with zeros in the middle": _zeroed(whole["progressive JPEG"]),
        "CMYK JPEG with zeros in the middle": _zeroed(save(Image.fromarray(noise).convert("CMYK"), "JPEG")),
        "grey JPEG with zeros in the middle": _zeroed(save(noise[:, :, 0], "JPEG")),
        "JPEG that claims more rows than it has": with_size_in_header(jpeg, WIDTH, 4 * HEIGHT),
        "JPEG without tables": jpeg.replace(b"\xff\xdb", b"\xff\xfe"),
        "PNG with a flipped bit": pixels[:flipped] + bytes([pixels[flipped] ^ 1]) + pixels[flipped + 1 :],
        "PNG with a wrong checksum": pixels[: pixels.rindex(b"IEND") - 6] + b"\0\0" + pixels[pixels.rindex(b"IEND") - 4 :],
        "PNG without pixels": png(WIDTH, HEIGHT),
        "TIFF, deflate, with zeros in the middle": _zeroed(whole["TIFF, deflate"]),
        "TIFF whose directory is elsewhere": b"II*\0\xff\xff\xff\x7f" + whole["TIFF"][8:],
    }
    return cases + [Case(name, DAMAGED, data) for name, data in files.items()]


def _zeroed(data):
    middle = len(data) // 2
    return data[:middle] + bytes(200) + data[middle + 200 :]


def without_range():
    level = photograph()[:, :, 0]
    return [
        Case("float TIFF", NO_RANGE, save(level.astype(np.float32), "TIFF")),
        Case("32-bit TIFF", NO_RANGE, save(level.astype(np.int32) * 1000, "TIFF")),
    ]


def bombs():
    """Small files that would take gigabytes or minutes; the first would really decode to what it claims."""
    jpeg = save(photograph(), "JPEG")
    squeezed = zlib.compressobj(9)
    real = b"".join(squeezed.compress(bytes(30001)) for _ in range(10000)) + squeezed.flush()
    gif = b"GIF89a" + struct.pack("<HHBBB", 10, 10, 0, 0, 0) + b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x02\x01\0\0;"
    webp = b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + (16382).to_bytes(3, "little") * 2
    bmp = save(photograph(), "BMP")
    files = {
        "PNG of 100 megapixels in 292 kB": png(10000, 10000, real),
        "PNG of 3.6 gigapixels": png(60000, 60000),
        "JPEG of 4 gigapixels": with_size_in_header(jpeg, 65500, 65500),
        "GIF of 4 gigapixels": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + gif[13:],
        "GIF with a frame larger than itself": gif,
        "TIFF of 10 gigapixels": tiff(100000, 100000),
        "BMP of 10 gigapixels": bmp[:18] + struct.pack("<ii", 100000, 100000) + bmp[26:],
        "PPM of 10 gigapixels": b"P6 100000 100000 255\n" + bytes(100),
        "WebP of 268 megapixels": b"RIFF" + struct.pack("<I", 4 + len(webp)) + b"WEBP" + webp,
        "JPEG with 60000 passes": _many_passes(),
        "PNG with a comment of 100 MB": insert(png(8, 8), 33, png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(100 << 20)))),
    }
    return [Case(name, TOO_LARGE, data) for name, data in files.items()]


def _many_passes():
    """A progressive JPEG of 16 megapixels whose last scan is repeated: minutes to decode, for half a megabyte."""
    data = save(np.zeros((4000, 4000), np.uint8), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last : last + 10] * 60000 + data[-2:]


@functools.cache
def cases() -> tuple[Case, ...]:
    parts = (jpegs, other_formats, several, greys, transparent, inks, not_images, damaged, without_range, bombs)
    return tuple(case for part in parts for case in part())


# What a directory can hold besides image files, and what a folder source makes of it.
FILES = {
    "read like any other": ("a JPEG named .png", "a name of 255 bytes", "a name that is not UTF-8", "a name with a line break"),
    "replaced: cannot be opened": ("an unreadable file", "a file that vanished after listing", "a broken link", "a link to itself"),
    "replaced: no plain file": ("a named pipe", "a link to a device", "a socket"),
    "replaced: larger than 1 GiB": ("a file of 1 TiB",),
    "entered like any directory": ("a directory named like an image",),
    "entered once": ("a link to a directory above",),
    "refused when the source is opened": ("an unreadable directory", "a path of more than 4096 bytes"),
}


def table() -> str:
    """The Markdown table of docs/data.md."""
    rows: dict[str, list[str]] = {}
    for case in cases():
        rows.setdefault(case.outcome, []).append(case.name)
    rows |= {outcome: list(names) for outcome, names in FILES.items()}
    lines = [f"| {outcome} | {'; '.join(names)} |" for outcome, names in rows.items()]
    return "\n".join(["| what becomes of it | files |", "|---|---|", *lines])


if __name__ == "__main__":
    print(table())
