"""Small encoded images and in-memory sources for the tests of this room."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from sere_jax.data.sources.example import Entry, Example, Source


def encode(pixels, file_format="PNG", **options):
    buffer = io.BytesIO()
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.asarray(pixels))
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


def gradient(height, width, blue=0):
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns * 255 // max(1, width - 1), rows * 255 // max(1, height - 1), np.full_like(rows, blue)], -1).astype(np.uint8)


class MemorySource(Source):
    """`count` images of different sizes whose blue channel is their number; those in `bad` hold damaged bytes."""

    spec = "memory"
    classes = ()

    def __init__(self, count, bad=(), missing=()):
        self._items = [encode(gradient(20 + 3 * (i % 5), 24 + 5 * (i % 3), blue=i)) for i in range(count)]
        for i in bad:
            self._items[i] = self._items[i][:60]
        self._missing = frozenset(missing)

    def __len__(self):
        return len(self._items)

    def __getitem__(self, index):
        if index >= len(self):
            raise IndexError(index)
        if index in self._missing:
            raise FileNotFoundError(f"no file {index}")
        return Example(f"image {index}", self._items[index], -1)

    def listing(self):
        return (Entry(f"image {index}", len(item), -1) for index, item in enumerate(self._items))
