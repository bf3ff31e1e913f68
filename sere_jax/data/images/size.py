"""The limits on an image's size, which are checked in its header, before any pixel is decoded."""

from __future__ import annotations

from sere_jax.data.sources.example import BadImage

# A blank page of one bit a pixel has some 8,000 pixels a byte in fax, PNG or LZW; small pictures cost nothing anyway.
_PIXELS_PER_BYTE = 20_000
_SMALL = 1_000_000


def check_size(height: int, width: int, max_pixels: int, file_bytes: int) -> None:
    """Raises BadImage for an empty image, for more than `max_pixels`, and for more pixels than a file so small can hold."""
    if height * width > max_pixels:
        raise BadImage(f"{width} x {height} pixels are more than the allowed {max_pixels} (data.max_pixels)")
    if height < 1 or width < 1:
        raise BadImage(f"an image of {width} x {height} pixels")
    if height * width > max(_SMALL, _PIXELS_PER_BYTE * file_bytes):
        raise BadImage(f"{width} x {height} pixels in {file_bytes} bytes, more than any sound file holds")
