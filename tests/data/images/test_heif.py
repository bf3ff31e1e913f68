"""AVIF and HEIC: read where Pillow can, else counted by extension; never with a value range."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
from PIL import Image, features

from sere_jax.data.images import heif
from sere_jax.data.images.decode import BadImage, decode
from sere_jax.data.images.reading import ImageReading
from sere_jax.data.sources.open import open_source
from tests.data.images.images import encode, gradient

needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no libavif")
HEIC = b"\0\0\0\x1cftypheic" + bytes(40)


@needs_avif
def test_avif_is_decoded():
    picture = gradient(40, 60, 30)
    data = encode(picture, "AVIF", quality=95)
    assert np.abs(decode(data).astype(int) - picture).mean() < 3  # lossy, and colours at half the size
    assert decode(data, ImageReading(channels=1)).shape == (40, 60, 1)
    with pytest.raises(BadImage, match="max_pixels"):
        decode(data, ImageReading(max_pixels=100))
    with pytest.raises(BadImage):
        decode(data[:200])
    with pytest.raises(BadImage, match=r"data.value_range does not apply"):
        decode(data, ImageReading(value_range=(0.0, 1000.0)))


def test_heic_without_its_reader_is_counted_and_told(tmp_path, monkeypatch):
    monkeypatch.setattr(heif, "reads_heic", lambda: False)
    (tmp_path / "1.heic").write_bytes(HEIC)
    (tmp_path / "2.png").write_bytes(encode(gradient(4, 4)))
    source = open_source(f"folder:{tmp_path}")
    assert len(source) == 1 and source.notes() == ("1 files are not read as images: 1 .heic",)
    with pytest.raises(BadImage, match="needs the package pillow-heif"):
        decode(HEIC)


def test_heic_is_listed_and_read_with_its_reader(tmp_path, monkeypatch):
    """A stand-in for pillow-heif registers a reader with Pillow, as the package does."""

    def register():
        Image.register_open("HEIF", lambda file, name: Image.new("RGB", (6, 5), (10, 20, 30)), lambda prefix: prefix[4:8] == b"ftyp")

    monkeypatch.setattr(heif, "reads_heic", lambda: True)
    monkeypatch.setitem(sys.modules, "pillow_heif", types.SimpleNamespace(register_heif_opener=register))
    heif._register_heic.cache_clear()
    (tmp_path / "1.HEIC").write_bytes(HEIC)
    (source,) = [open_source(f"folder:{tmp_path}")]
    assert len(source) == 1
    assert decode(source[0].data).tolist() == [[[10, 20, 30]] * 6] * 5
    heif._register_heic.cache_clear()
    Image.OPEN.pop("HEIF")
    Image.ID.remove("HEIF")
