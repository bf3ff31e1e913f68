"""TIFF: pictures through Pillow where it is exact, and exact samples of any depth and number where it is not. A part of `decode`.

With 1 or 3 channels a TIFF is a picture: its first page. With other numbers it is a stack of bands: the samples of a pixel,
planes, or pages of one size. White is where the file says it is: a min-is-white page is inverted, whatever its depth.
"""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from sere_jax.data.images.rasters import check_samples, levels, shape_message
from sere_jax.data.images.reading import BY_TYPE, ImageReading
from sere_jax.data.images.size import check_size
from sere_jax.data.sources.example import BadImage

if TYPE_CHECKING:
    import tifffile

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # both byte orders, classic and BigTIFF
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2  # photometric interpretations whose samples are grey or colour themselves
_BITS, _SAMPLE_FORMAT = 258, 339  # tags
_MOST_SEGMENTS = 100_000  # strips or tiles of a page, each of which costs microseconds however small it is
_MOST_PAGES = 1000  # beside those of the bands, each of which costs a tenth of a millisecond


def decode_tiff(data: bytes, reading: ImageReading) -> UInt8[np.ndarray, "H W s"] | None:
    """Levels, s = 1 or 3 for a picture and `channels` for bands; None for a picture that Pillow reads exactly. Raises BadImage."""
    check_pages(data)
    import tifffile  # takes a tenth of a second, and most runs read none

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = _page(file, 0)
        _check_page(page, data, reading)
        if reading.channels not in (1, 3):
            return _levels(_bands(file, page, data, reading), page, reading)
        if _is_for_pillow(page, reading):
            return None
        return _levels(_picture(_samples(page, data, first=True), page, reading.channels), page, reading)


def check_pages(data: bytes) -> None:
    """Raises BadImage where pages link in a circle: every reader that counts pages would never end."""
    order, big = ("<" if data[:2] == b"II" else ">"), data[2:4] in (b"+\0", b"\0+")
    link, number, entry, start = ("Q", "Q", 20, 8) if big else ("I", "H", 12, 4)
    seen: set[int] = set()
    try:
        (offset,) = struct.unpack_from(order + link, data, start)
        while offset:
            if offset in seen:
                raise BadImage("a TIFF whose pages link in a circle")
            seen.add(offset)
            (entries,) = struct.unpack_from(order + number, data, offset)
            (offset,) = struct.unpack_from(order + link, data, offset + struct.calcsize(order + number) + entry * entries)
    except (struct.error, OverflowError):  # a link that leaves the file; the readers check the rest
        if not seen:
            raise BadImage("a TIFF without pages") from None


def _page(file: tifffile.TiffFile, number: int) -> tifffile.TiffPage:
    page: Any = file.pages[number]
    return page.aspage()


def _check_page(page: tifffile.TiffPage, data: bytes, reading: ImageReading) -> None:
    height, width, samples = page.imagelength, page.imagewidth, page.samplesperpixel
    check_size(height, width, max(reading.max_pixels, 3 * reading.max_pixels // max(1, samples)), len(data))
    if page.imagedepth != 1:
        raise BadImage(f"a TIFF of {page.imagedepth} slices in one page, expected one")
    for tag, what in ((_BITS, "bits a sample"), (_SAMPLE_FORMAT, "types of samples")):
        values = page.tags[tag].value if tag in page.tags else 0
        if isinstance(values, tuple) and len(set(values)) > 1:
            raise BadImage(f"a TIFF of mixed {what}: {', '.join(map(str, values[:8]))}")
    counts = page.databytecounts
    if len(counts) > _MOST_SEGMENTS:
        raise BadImage(f"a TIFF of {len(counts):,} strips or tiles in one page, expected at most {_MOST_SEGMENTS:,}")
    ends = [offset + count for offset, count in zip(page.dataoffsets, counts, strict=True)]
    if not ends or max(ends) > len(data) or min(counts) < 1:
        raise BadImage("a TIFF that is cut short")


def _is_for_pillow(page: tifffile.TiffPage, reading: ImageReading) -> bool:
    """Whether the page is a picture of at most 8 bits a sample. A range concerns samples of 8 bits and more that are grey or colour."""
    bits, samples = int(page.bitspersample), page.samplesperpixel
    coded = page.photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB)  # palette, ink, luma and chroma, Lab
    if coded and bits > 8:
        raise BadImage(f"a TIFF of {bits} bits whose samples are {page.photometric!s}, expected grey or RGB")
    if coded or bits < 8:
        return True
    ordinary = samples >= 3 if page.photometric == _RGB else samples <= 2
    return bits == 8 and int(page.sampleformat) == 1 and ordinary and reading.value_range == BY_TYPE


def _samples(page: tifffile.TiffPage, data: bytes, *, first: bool) -> np.ndarray:
    """The exact samples of a page, [H, W, s]. Raises BadImage where its compression is not supported."""
    shape = (page.imagelength, page.imagewidth, page.samplesperpixel)
    try:
        array = page.asarray(maxworkers=1)
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        fallback = _by_another_reader(page, data) if first else None
        if fallback is None or fallback.size != np.prod(shape):
            raise BadImage(
                f"a TIFF of {shape[2]} x {page.bitspersample} bits compressed by {page.compression!s} needs imagecodecs"
            ) from None
        return fallback.reshape(shape)
    separate = int(page.planarconfig) == 2 and shape[2] > 1
    return np.moveaxis(array.reshape(shape[2], *shape[:2]), 0, -1) if separate else array.reshape(shape)


def _by_another_reader(page: tifffile.TiffPage, data: bytes) -> np.ndarray | None:
    """The first page by libtiff, in OpenCV or Pillow: compressions that tifffile alone does not know, such as LZW."""
    grey = page.photometric != _RGB
    if page.bitspersample in (16, 32, 64):
        array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if array is None or array.dtype != page.dtype:
            return None
        return array if grey else np.concatenate([array[..., 2::-1], array[..., 3:]], axis=-1)
    with Image.open(io.BytesIO(data), formats=("TIFF",)) as image:
        if image.mode not in ("L", "LA", "RGB", "RGBA", "RGBX", "I;16", "I;16B", "I;16L") or int(page.sampleformat) != 1:
            return None
        array = np.array(image)
    # Of 8 bits Pillow has inverted a min-is-white page already; `_levels` does it again.
    return 255 - array if page.bitspersample == 8 and page.photometric == _WHITE_IS_ZERO else array


def _picture(samples: np.ndarray, page: tifffile.TiffPage, channels: int) -> np.ndarray:
    """Grey or RGB of a page, without alpha."""
    count = samples.shape[2]
    if page.photometric == _RGB and count >= 3:
        return samples[..., :3]
    if count <= 2:
        return samples[..., :1]
    if count == channels == 3:
        return samples
    raise BadImage(shape_message(samples.shape, channels))


def _bands(file: tifffile.TiffFile, page: tifffile.TiffPage, data: bytes, reading: ImageReading) -> np.ndarray:
    """The samples of the first page, or the pages that look like it where each has one sample."""
    channels, samples = reading.channels, page.samplesperpixel
    shape = (page.imagelength, page.imagewidth, samples)
    check_samples(page.imagelength * page.imagewidth * channels, page.dtype, reading.max_pixels)
    if samples == channels:
        return _samples(page, data, first=True)
    alike = [page]
    if samples == 1 and len(file.pages) > channels + _MOST_PAGES:
        raise BadImage(f"a TIFF of {len(file.pages):,} pages, expected {channels} bands")
    for number in range(1, len(file.pages) if samples == 1 else 1):
        other = _page(file, number)
        if (other.imagelength, other.imagewidth, other.samplesperpixel, other.dtype) == (*shape, page.dtype):
            alike.append(other)
    if len(alike) != channels:
        pages = f" in {len(alike)} pages" if len(alike) > 1 else ""
        raise BadImage(shape_message(shape, channels) + pages)
    for other in alike[1:]:
        _check_page(other, data, reading)
    return np.concatenate([_samples(other, data, first=other is page) for other in alike], axis=-1)


def _levels(samples: np.ndarray, page: tifffile.TiffPage, reading: ImageReading) -> np.ndarray:
    check_samples(samples.size, samples.dtype, reading.max_pixels)
    bits = int(page.bitspersample)
    white = 2**bits - 1 if samples.dtype.kind == "u" and bits <= 16 else 0
    pixels = levels(samples, reading.value_range, white)
    return 255 - pixels if page.photometric == _WHITE_IS_ZERO else pixels
