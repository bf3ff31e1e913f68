"""PNG files of any bit depth and colour type, written by hand: Pillow writes neither grey of 2 and 4 bits nor RGB of 16."""

from __future__ import annotations

import struct
import zlib

import numpy as np


def png(samples, bits, colour, *, palette=b"", transparent=b""):
    """A PNG of [H, W] or [H, W, s] samples. `colour` is PNG's colour type: 0 grey, 2 RGB, 3 palette, 4 and 6 with alpha."""
    rows = np.asarray(samples).reshape(len(samples), -1)
    places = np.arange(bits - 1, -1, -1)
    packed = [np.packbits((row[:, None] >> places & 1).astype(np.uint8).ravel()).tobytes() for row in rows]
    header = struct.pack(">IIBBBBB", np.shape(samples)[1], len(rows), bits, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in packed))
    chunks = [(b"IHDR", header), (b"PLTE", palette), (b"tRNS", transparent), (b"IDAT", pixels)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks if data) + _chunk(b"IEND", b"")


def _chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
