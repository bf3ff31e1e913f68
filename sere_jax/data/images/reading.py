"""How encoded images become pixels: the settings that every reader of images takes."""

from __future__ import annotations

import dataclasses
from typing import Literal, TypeAlias

Backend = Literal["fast", "pil"]
BACKENDS: tuple[Backend, ...] = ("fast", "pil")
MAX_PIXELS = 50_000_000
MAX_SECONDS = 20.0

ValueRange: TypeAlias = tuple[float, float]
BY_TYPE: ValueRange = (0.0, 0.0)  # the whole range of an unsigned integer type


@dataclasses.dataclass(frozen=True)
class ImageReading:
    """How encoded images become pixels: the settings of `decode` and of all that read images through it.

    Attributes:
      backend: "fast" decodes JPEG with libjpeg-turbo and resizes crops with OpenCV; "pil" does both with Pillow.
      max_pixels: width x height above which an image counts as unreadable.
      channels: 3 for RGB, 1 for luma; another number reads arrays and TIFF files with that many channels.
      value_range: the sample values that become the levels 0 and 255; `BY_TYPE` takes the range of the integer type.
      seconds: after which decoding an image is given up, and it counts as unreadable.

    Raises ValueError for an unknown backend, fewer than one channel, or a range that does not rise.
    """

    backend: Backend = "fast"
    max_pixels: int = MAX_PIXELS
    channels: int = 3
    value_range: ValueRange = BY_TYPE
    seconds: float = MAX_SECONDS

    def __post_init__(self) -> None:
        low, high = self.value_range
        if self.backend not in BACKENDS:
            raise ValueError(f"backend is {self.backend!r}, expected one of {', '.join(BACKENDS)}")
        if self.channels < 1:
            raise ValueError(f"channels is {self.channels}, expected at least 1")
        if self.value_range != BY_TYPE and not low < high:
            raise ValueError(f"value_range is {self.value_range}, expected two rising values, or {BY_TYPE} for the range of the type")


DEFAULT_READING = ImageReading()
