"""AVIF and HEIC, which phones and cameras write: read where Pillow can. A part of `decode`.

Pillow reads AVIF where it was built with libavif, as its wheels are, and HEIC with the package pillow-heif.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image, features

from sere_jax.data.images.reading import BY_TYPE, ImageReading
from sere_jax.data.images.size import check_size
from sere_jax.data.sources.example import BadImage

_AVIF = frozenset({".avif", ".avifs"})
_HEIC = frozenset({".heic", ".heif", ".heics", ".hif"})


def reads_avif() -> bool:
    """Whether Pillow reads AVIF."""
    return bool(features.check("avif"))


def reads_heic() -> bool:
    """Whether the package pillow-heif is installed."""
    return importlib.util.find_spec("pillow_heif") is not None


def extensions() -> frozenset[str]:
    """The extensions of the formats of this module that can be read here."""
    return (_AVIF if reads_avif() else frozenset()) | (_HEIC if reads_heic() else frozenset())


def is_heif(data: bytes) -> bool:
    """Whether the file is in the container that AVIF and HEIC share."""
    return data[4:8] == b"ftyp"


def decode_heif(data: bytes, reading: ImageReading) -> UInt8[np.ndarray, "H W 3"]:
    """The first picture in RGB of 8 bits. Raises BadImage for what Pillow cannot read here, and where a value range is set."""
    avif = data[8:12] in (b"avif", b"avis")
    if not (reads_avif() if avif else reads_heic()):
        needed = "a Pillow with libavif" if avif else "the package pillow-heif"
        raise BadImage(f"{'an AVIF' if avif else 'a HEIC'} image, which needs {needed}")
    if reading.value_range != BY_TYPE:
        raise BadImage("an AVIF or HEIC image; data.value_range does not apply to these, whose samples may have more than 8 bits")
    if not avif:
        _register_heic()
    with Image.open(io.BytesIO(data), formats=("AVIF" if avif else "HEIF",)) as image:
        check_size(image.height, image.width, reading.max_pixels, len(data))
        return np.array(image.convert("RGB"))


@functools.cache
def _register_heic() -> None:
    module = importlib.import_module("pillow_heif")
    module.register_heif_opener()
