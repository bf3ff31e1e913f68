"""Features of a folder of images in files: names, order, values, any image size, unreadable images."""

from __future__ import annotations

import json
import os
import stat

import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sere_jax import load_backbone
from sere_jax.commands.export import export
from sere_jax.commands.extract import extract
from sere_jax.commands.extract_command import ExtractError, main
from sere_jax.data.sources.open import open_source
from sere_jax.evals.feature_files import escaped, unescaped
from tests import micro, saved_run

SIZES = {"a.png": (40, 24), "b.png": (18, 18), "c.png": (16, 30), "d.png": (17, 50), "e.png": (64, 64)}  # width, height


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with the folder `images` (five good, one broken) and the exported `x.safetensors`."""
    root = tmp_path_factory.mktemp("extract")
    config = micro.config()
    export(saved_run.checkpoint(root / "run", config, saved_run.state(config)), root / "x.safetensors")
    (root / "images").mkdir()
    rng = np.random.default_rng(0)
    for name, (width, height) in SIZES.items():
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(root / "images" / name)
    (root / "images" / "broken.jpg").write_bytes(b"no image")
    return root


def _run(place, output, *arguments: str, images=None) -> int:
    images = images or place / "images"
    return main([f"--checkpoint={place / 'x.safetensors'}", f"--data=folder:{images}", f"--output={output}", *arguments])


def _expected(place, pixels, **asked):
    backbone = load_backbone(place / "x.safetensors")
    mean, std = (np.asarray(values, np.float32) for values in (backbone.preprocess.mean, backbone.preprocess.std))
    return backbone(jnp.asarray((pixels[None].astype(np.float32) / 255 - mean) / std), **asked)


def test_parquet_has_a_row_for_each_image_in_order(place, tmp_path, capsys):
    assert _run(place, tmp_path / "out", "--tokens=cls,patches,attention", "--layers=0,-1", "--rows_per_file=3", "--batch_size=4") == 0
    assert "5 images in 2 files, 1 left out as unreadable" in capsys.readouterr().out
    about = json.loads((tmp_path / "out" / "features.json").read_text())
    assert about["files"] == ["features-00000.parquet", "features-00001.parquet"]
    shapes = {"cls": [48], "patches": [4, 4, 48], "attention": [3, 4, 4], "layer_0": [17, 48], "layer_1": [17, 48]}
    assert (about["columns"], about["rows"], about["network"], about["size"]) == (shapes, 5, "teacher", 16)
    tables = [pq.read_table(tmp_path / "out" / name).to_pydict() for name in about["files"]]
    assert tables[0]["name"] + tables[1]["name"] == sorted(SIZES)
    # b.png is 18 x 18: no resizing, the middle 16 x 16 pixels.
    pixels = np.asarray(Image.open(place / "images" / "b.png"))[1:17, 1:17]
    features = _expected(place, pixels, layers=(0, 1), attention=True)
    row = {key: np.asarray(tables[0][key][1]).reshape(shape) for key, shape in shapes.items()}
    # The same numbers in a batch of another size: float32 sums in another order.
    np.testing.assert_allclose(row["cls"], features.cls[0], atol=1e-5)
    np.testing.assert_allclose(row["patches"], features.patches[0], atol=1e-5)
    np.testing.assert_allclose(row["attention"], features.attention[0, :, 0, 1:].reshape(3, 4, 4), atol=1e-5)
    np.testing.assert_allclose(row["layer_0"], features.layers[0][0], atol=1e-5)
    np.testing.assert_allclose(row["layer_1"], features.layers[1][0], atol=1e-5)


def test_npz_holds_the_same(place, tmp_path):
    for layout in ("npz", "parquet"):
        assert _run(place, tmp_path / layout, f"--format={layout}", "--tokens=cls,patches", "--dtype=float16") == 0
    table = pq.read_table(tmp_path / "parquet" / "features-00000.parquet").to_pydict()
    with np.load(tmp_path / "npz" / "features-00000.npz") as arrays:
        assert arrays["name"].tolist() == table["name"]
        assert (arrays["patches"].shape, arrays["patches"].dtype) == ((5, 4, 4, 48), np.float16)
        np.testing.assert_array_equal(arrays["cls"], np.asarray(table["cls"], np.float16))
        assert arrays["label"].tolist() == [-1] * 5


def test_native_sizes_are_cut_to_whole_patches(place, tmp_path):
    assert _run(place, tmp_path / "out", "--size=native", "--tokens=patches") == 0
    table = pq.read_table(tmp_path / "out" / "features-00000.parquet").to_pydict()
    grids = dict(zip(table["name"], zip(table["grid_height"], table["grid_width"], strict=True), strict=True))
    assert grids == {name: (height // 4, width // 4) for name, (width, height) in SIZES.items()}
    assert json.loads((tmp_path / "out" / "features.json").read_text())["columns"] == {"patches": [-1, -1, 48]}
    pixels = np.asarray(Image.open(place / "images" / "d.png"))[:48, :16]
    expected = _expected(place, pixels).patches[0]
    np.testing.assert_allclose(np.asarray(table["patches"][table["name"].index("d.png")]).reshape(12, 4, 48), expected, atol=1e-5)


def test_layers_and_a_size_that_the_network_does_not_have_are_told_together(place, tmp_path, capsys):
    assert _run(place, tmp_path / "out", "--layers=2", "--size=17") == 2
    message = capsys.readouterr().err
    assert "layers: found 2, expected 0 to 1" in message and "size: found 17, expected a multiple of the patch" in message


def test_mistakes_are_told_together(place, tmp_path, capsys):
    (tmp_path / "features-00000.parquet").write_bytes(b"")
    assert _run(place, tmp_path, "--tokens=cls,token", "--size=native", "--format=npz") == 2
    message = capsys.readouterr().err
    for part in ("tokens: found 'token'", "found native with the format npz", "found features in"):
        assert part in message
    assert main([f"--checkpoint={tmp_path}/none.pth", "--data=bundled", f"--output={tmp_path}/o"]) == 2
    assert "no such file" in capsys.readouterr().err


def test_a_size_that_would_cut_off_an_edge_is_refused(place):
    with pytest.raises(ExtractError, match="size: found 30, expected a multiple of the patch"):
        extract(load_backbone(place / "x.safetensors"), open_source("bundled"), place / "cut", size=30)


def test_native_features_of_a_network_of_grey_images(tmp_path, capsys):
    """A broken file takes the place of an image of as many channels as the network has."""
    changes = {"model": {"in_channels": 1}, "photometry": {"mean": (0.45,), "std": (0.25,)}, "data": {"value_range": (0.0, 4095.0)}}
    config = micro.config(changes)
    run = saved_run.checkpoint(tmp_path / "run", config, saved_run.state(config))
    (tmp_path / "images").mkdir()
    np.save(tmp_path / "images" / "a.npy", np.arange(20 * 12, dtype=np.uint16).reshape(20, 12) * 17)
    np.save(tmp_path / "images" / "tiny.npy", np.zeros((3, 12), np.uint16))
    (tmp_path / "images" / "broken.npy").write_bytes(b"no image")
    arguments = [f"--checkpoint={run}", f"--data=folder:{tmp_path / 'images'}", f"--output={tmp_path / 'out'}"]
    assert main([*arguments, "--size=native", "--tokens=cls,patches"]) == 0
    output = capsys.readouterr()
    assert "1 images in 1 files, 2 left out as unreadable" in output.out
    assert "'tiny.npy' cannot be read and is left out: 12 x 3 pixels are less than a patch" in output.err
    table = pq.read_table(tmp_path / "out" / "features-00000.parquet").to_pydict()
    assert (table["name"], table["grid_height"], table["grid_width"]) == (["a.npy"], [5], [3])
    levels = np.floor(np.arange(20 * 12).reshape(20, 12, 1) * 17 / 4095 * 255 + 0.5)
    images = jnp.asarray(((levels[None] / 255 - 0.45) / 0.25).astype(np.float32))
    np.testing.assert_allclose(table["cls"][0], load_backbone(run)(images).cls[0], atol=1e-5)  # float32 in another order


@pytest.mark.parametrize("layout", ["parquet", "npz"])
def test_names_that_are_not_utf8_come_back(place, tmp_path, layout):
    names = [b"caf\xe9.png", "caf\u00e9.png".encode(), b"back\\slash.png"]
    (tmp_path / "images").mkdir()
    for name in names:
        with open(os.fsencode(tmp_path / "images") + b"/" + name, "wb") as file:
            file.write((place / "images" / "b.png").read_bytes())
    assert _run(place, tmp_path / "out", f"--format={layout}", images=tmp_path / "images") == 0
    path = tmp_path / "out" / f"features-00000.{layout}"
    stored = pq.read_table(path)["name"].to_pylist() if layout == "parquet" else np.load(path)["name"].tolist()
    assert sorted(stored) == sorted(["caf\\xe9.png", "caf\u00e9.png", "back\\\\slash.png"])
    assert {os.fsencode(unescaped(text)) for text in stored} == set(names)


@given(st.binary(max_size=12).map(os.fsdecode))
def test_every_name_has_a_spelling_of_its_own(name):
    escaped(name).encode()  # UTF-8 can hold it
    assert unescaped(escaped(name)) == name


def test_files_have_the_mode_of_the_umask(place, tmp_path):
    before = os.umask(0o027)
    try:
        assert _run(place, tmp_path / "out") == 0
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()} == {0o640}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size=abc"], "size: found 'abc', expected whole numbers, or native"),
        (["--layers=0,x"], "layers: found '0,x', expected whole numbers"),
        (["--size=24", "--resize=20"], "size, resize: found 24 and 20"),
        (["--size=-4"], "size, resize: found -4"),
        (["--batch_size=0"], "batch_size: found 0, expected at least 1"),
        (["--rows_per_file=-1"], "rows_per_file: found -1"),
    ],
)
def test_numbers_that_cannot_be_followed(place, tmp_path, capsys, arguments, message):
    assert _run(place, tmp_path / "out", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_is_told_before_the_work(place, tmp_path, capsys):
    (tmp_path / "out").write_text("a file")
    assert _run(place, tmp_path / "out") == 2
    assert f"output: {tmp_path / 'out'} cannot be written" in capsys.readouterr().err
