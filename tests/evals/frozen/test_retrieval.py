"""Regions of photographs: disjoint halves, fixed by the seed, labelled by the photograph."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sere_jax.data.images.reading import ImageReading
from sere_jax.data.sources.open import open_source
from sere_jax.evals.frozen import baselines, retrieval
from sere_jax.evals.network import EvalError
from sere_jax.evals.pictures import LeftOut
from tests.evals import micro_network


@given(st.integers(2, 400), st.integers(2, 400), st.floats(0.01, 1.0), st.integers(0, 10_000))
def test_regions_are_squares_inside_their_own_half(height, width, scale, seed):
    for right in (False, True):
        left, top, end, bottom = retrieval.region_box(height, width, right, (scale, scale), np.random.default_rng(seed))
        assert end - left == bottom - top >= 1
        assert top >= 0 and bottom <= height
        assert (width - width // 2 <= left and end <= width) if right else (left >= 0 and end <= width // 2)


def test_batches_are_fixed_by_the_seed_and_padded(tmp_path):
    source = open_source(f"folder:{micro_network.photographs(tmp_path)}")
    regions = retrieval.Regions(per_photo=3, seed=1)

    def batches(queries: bool, seed: int = 1):
        return list(
            retrieval.region_batches(source, queries=queries, size=8, regions=regions._replace(seed=seed), batch_size=5, left_out=LeftOut())
        )

    first, again, other = batches(True), batches(True), batches(True, seed=2)
    labels = np.concatenate([b.labels[b.valid] for b in first])
    assert labels.tolist() == np.repeat(np.arange(4), 3).tolist()
    assert [int(b.valid.sum()) for b in first] == [5, 5, 2]
    assert np.concatenate([b.index[b.valid] for b in first]).tolist() == list(range(12))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.images[a.valid], b.images[b.valid])
    assert (first[0].images != other[0].images).any()
    assert (first[0].images != batches(False)[0].images).any()


def test_jitter_of_strength_zero_changes_nothing_and_grey_stays_grey():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    np.testing.assert_array_equal(retrieval.jitter(image, 0.0, rng), image)
    grey = np.repeat(image[..., :1], 3, axis=2)
    found = retrieval.jitter(grey, 0.4, rng)
    # The luma weights sum to 1 in float32 only to 1e-7: far below half a level.
    assert (found == found[..., :1]).all() and (found != grey).any()


def test_one_photograph_is_too_few(tmp_path):
    alone = open_source(f"folder:{micro_network.photographs(tmp_path, count=1)}")
    with pytest.raises(EvalError, match="found 1"):
        next(retrieval.region_batches(alone, queries=False, size=8, regions=retrieval.Regions(), batch_size=2, left_out=LeftOut()))


def test_photographs_without_two_halves_or_pixels_are_left_out_by_name(tmp_path, caplog):
    folder = micro_network.photographs(tmp_path, count=3)
    (folder / "broken.png").write_bytes(b"no image")
    Image.new("RGB", (1, 40)).save(folder / "narrow.png")
    Image.new("RGB", (40, 1)).save(folder / "wide.png")
    left_out, regions = LeftOut(), retrieval.Regions(per_photo=2)
    source = open_source(f"folder:{folder}")
    batches = list(retrieval.region_batches(source, queries=True, size=8, regions=regions, batch_size=4, left_out=left_out))
    assert left_out == {0: "broken.png", 1: "narrow.png"} and "1 x 40 pixels have no left and right half" in caplog.text
    assert retrieval._notes(left_out, 6) == [
        "1 of 6 photographs cannot be read and is left out: broken.png",
        "1 of 6 photographs cannot be halved, at a width of 1 pixel, and is left out: narrow.png",
    ]
    index = np.concatenate([batch.index for batch in batches])
    assert index.tolist() == [4, 5, 6, 7, 8, 9, 10, 11]
    assert np.concatenate([batch.labels for batch in batches]).tolist() == [2, 2, 3, 3, 4, 4, 5, 5]


@pytest.mark.parametrize("channels", [1, 5])
def test_regions_of_other_channels_are_cut_channel_by_channel(tmp_path, channels):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, channels), dtype=np.uint8)
    for number in range(2):
        np.save(tmp_path / f"{number}.npy", pixels)
    shared = {"size": 8, "regions": retrieval.Regions(per_photo=1, jitter=0.0), "batch_size": 2, "left_out": LeftOut()}
    source, reading = open_source(f"folder:{tmp_path}"), ImageReading(channels=channels)
    [batch] = retrieval.region_batches(source, queries=True, reading=reading, **shared)
    box = retrieval.region_box(30, 40, True, (0.1, 0.4), np.random.default_rng([0, 0, 1, 0]))
    for c in range(channels):
        plane = Image.fromarray(pixels[..., c]).resize((8, 8), Image.Resampling.BICUBIC, box=box)
        np.testing.assert_array_equal(batch.images[0, ..., c], np.asarray(plane))


def test_colour_histogram_counts_each_pixel_once_in_its_bin():
    image = np.zeros((2, 2, 3), np.uint8)
    image[0, 0] = (255, 32, 31)  # bins 7, 1, 0
    found = baselines.colour_histogram(image)
    assert found[0] == 0.75 and found[7 * 64 + 1 * 8 + 0] == 0.25 and found.sum() == 1


def test_raw_pixels_are_block_means():
    image = np.arange(32 * 32 * 3, dtype=np.uint32).reshape(32, 32, 3).astype(np.uint8)
    expected = image.reshape(16, 2, 16, 2, 3).astype(np.float64).mean((1, 3)) / 255
    # The area filter answers in whole levels.
    np.testing.assert_allclose(baselines.raw_pixels(image).reshape(16, 16, 3), expected, atol=0.51 / 255)


def test_protocol_prints_one_table_and_writes_it(tmp_path, capsys):
    folder = micro_network.photographs(tmp_path / "photos")
    settings = retrieval.Settings(
        source=f"folder:{folder}",
        regions_per_photo=3,
        region_scale=(0.3, 0.6),
        jitter=0.2,
        tokens=("cls", "patches"),
        neighbours=(1, 20),
        temperature=0.07,
        size=0,
        batch_size=5,
        reading=ImageReading(max_pixels=10_000),
        baselines=True,
        seed=0,
    )
    retrieval.run([micro_network.network()], tmp_path / "out", settings)
    found = json.loads((tmp_path / "out" / "eval" / "retrieval.json").read_text())
    assert found["photographs"] == 4
    rows = {(row["name"], row["tokens"]): row for row in found["results"]}
    assert {("raw pixels", ""), ("colour histogram", ""), ("micro", "cls"), ("micro", "patches")} < set(rows)
    assert set(rows["raw pixels", ""]["accuracy"]) == {"k1/top1", "k12/top1"}
    text = capsys.readouterr().out
    assert "k = 20" in text and "best baseline" in text and "micro: teacher of step 5" in text and "random init" in text
