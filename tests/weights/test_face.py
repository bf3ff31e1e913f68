"""What people give to `load_backbone`, to a backbone and to `prepare`: right, or refused in a sentence."""

from __future__ import annotations

import os
import pydoc
import shutil
import subprocess
import sys
import tomllib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import sere_jax
from sere_jax import load_backbone
from sere_jax.commands.export import export
from sere_jax.data.batches.whole_images import eval_batches
from sere_jax.data.images.reading import ImageReading
from sere_jax.data.sources.open import open_source
from sere_jax.evals.features import normalise
from sere_jax.interop.tables import InteropError
from sere_jax.models.resnet import ResNet
from sere_jax.weights.backbone import Backbone
from sere_jax.weights.beside import Preprocess
from sere_jax.weights.images import BackboneError
from tests import micro, saved_run
from tests.house import ROOT


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = micro.config()
    return saved_run.checkpoint(tmp_path_factory.mktemp("run"), config, saved_run.state(config))


@pytest.fixture(scope="module")
def backbone(run):
    return load_backbone(run)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """A PNG of 21 x 35 pixels in a folder of its own."""
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (35, 21, 3), dtype=np.uint8)).save(path)
    return path


BAD = [
    (np.zeros((1, 16, 16, 3), np.uint8), "found uint8, expected floats that are normalised; backbone.prepare"),
    (np.zeros((1, 16, 16, 3), bool), "found bool"),
    (np.zeros((1, 16, 16, 3), np.complex64), "found ndarray, expected a path"),
    (np.zeros((16, 16, 3), np.float32), r"found shape \[16, 16, 3\], expected \[b, H, W, 3\]; images\[None\]"),
    (np.zeros((1, 3, 16, 16), np.float32), r"channels stand first: images.transpose\(0, 2, 3, 1\)"),
    (np.zeros((1, 16, 16, 1), np.float32), r"expected \[b, H, W, 3\]$"),
    (np.zeros((16, 16), np.float32), r"found shape \[16, 16\]"),
    (np.zeros((1, 3, 16, 3), np.float32), "found 3 x 16 pixels, expected at least 4 x 4"),
    (np.float32(1), "found float32, expected a path"),
    ("photo.png", "found str, expected an array of normalised floats"),
    ([np.zeros((16, 16, 3))], "found list"),
    (Image.new("RGB", (16, 16)), "found Image"),
    (None, "found NoneType"),
    (object(), "found object"),
]


@pytest.mark.parametrize(("given", "message"), BAD, ids=lambda value: value[:30] if isinstance(value, str) else "")
def test_what_a_backbone_cannot_take_is_a_sentence(backbone, given, message):
    with pytest.raises(BackboneError, match=message):
        backbone(given)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_name_the_image(backbone, images, value):
    spoilt = images.copy()
    spoilt[1, 3, 3, 0] = value
    with pytest.raises(BackboneError, match=r"NaN or infinity in image 1, expected finite numbers \(1 such"):
        backbone(spoilt)


def test_every_kind_of_float_and_no_image_at_all(backbone, images):
    expected = backbone(images).cls
    np.testing.assert_array_equal(backbone(images.astype(np.float64)).cls, expected)
    np.testing.assert_array_equal(backbone(jnp.asarray(images)).cls, expected)
    halves = images.astype(np.float16)
    np.testing.assert_array_equal(backbone(halves).cls, backbone(halves.astype(np.float32)).cls)
    empty = backbone(images[:0], attention=True)
    assert (empty.cls.shape, empty.patches.shape, empty.attention.shape) == ((0, 48), (0, 4, 4, 48), (0, 3, 17, 17))
    # Inside the caller's jit: values cannot be looked at, shapes can.
    np.testing.assert_allclose(jax.jit(lambda x: backbone(x).cls)(images), expected, atol=1e-5)  # fused differently


def test_tensors_of_pytorch_are_arrays_too(backbone, images):
    torch = pytest.importorskip("torch")
    np.testing.assert_array_equal(backbone(torch.from_numpy(images)).cls, backbone(images).cls)
    with pytest.raises(BackboneError, match="found Tensor, which NumPy cannot read"):
        backbone(torch.from_numpy(images).requires_grad_())


@pytest.mark.parametrize("layers", [-1, [1], (np.int64(1),), range(1, 2)])
def test_layers_in_any_spelling(backbone, images, layers):
    np.testing.assert_array_equal(backbone(images, layers=layers).layers[0], backbone(images, layers=(1,)).layers[0])


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (2, "found 2, expected 0 to 1"),
        ([0, -3], "found -3"),
        (0.5, "found 0.5"),
        ("1", "found '1'"),
        (True, "found True, expected whole numbers"),
        ([0, np.True_], "found "),
    ],
)
def test_layers_that_there_are_not(backbone, images, layers, message):
    with pytest.raises(BackboneError, match=f"layers: {message}"):
        backbone(images, layers=layers)


def test_a_resnet_has_no_layers_and_no_attention(images):
    resnet = Backbone(ResNet(), {}, Preprocess(224, 256))
    for asked in ({"layers": -1}, {"layers": (0,)}, {"attention": True}):
        with pytest.raises(BackboneError, match="a ResNet has neither tokens nor attention"):
            resnet(images, **asked)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": 4}, "heads: found 4, expected 3, which the run's config states"),
        ({"heads": -1}, "heads: found -1"),
        ({"dtype": "float8"}, "dtype: found 'float8', expected one of float32, bfloat16"),
        ({"dtype": "int32"}, "dtype: found 'int32'"),
        ({"image_size": -16}, "image_size: found -16"),
        ({"network": "ema"}, "network: found 'ema', expected one of teacher, student"),
        ({"heads": True}, "heads: found True"),
        ({"step": -1}, "step: found -1"),
    ],
)
def test_contradicting_and_unknown_settings_are_refused(run, arguments, message):
    with pytest.raises(InteropError, match=message):
        load_backbone(run, **arguments)


_OTHER_TYPES = """
import sys
from sere_jax import load_backbone
for arguments in (
    {'network': 1}, {'image_size': 64.0}, {'heads': '3'}, {'step': '7'}, {'ignore': 3}, {'ignore': ['head.*', None]}, {'dtype': None},
    {'source': None}, {'source': 3}, {'source': b'run'}, {'source': ['run']},
):
    try:
        load_backbone(**{'source': sys.argv[1]} | arguments)
    except ValueError as error:
        print(type(error).__name__, error)
"""


def test_values_of_other_types_are_refused_in_a_sentence(run):
    """In a process of its own: the suite checks annotations, which users do not."""
    done = subprocess.run([sys.executable, "-c", _OTHER_TYPES, str(run)], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "InteropError network: found 1, expected one of teacher, student",
        "InteropError image_size: found 64.0, expected a whole number of at least 0",
        "InteropError heads: found '3', expected a whole number of at least 0",
        "InteropError step: found '7', expected a whole number of at least 0",
        "InteropError ignore: found 3, expected names of tensors, which may hold * and ?",
        "InteropError ignore: found None, expected names of tensors, which may hold * and ?",
        "InteropError dtype: found None, expected one of float32, bfloat16",
        "FileError source: found None, expected the path of a run or a file",
        "FileError source: found 3, expected the path of a run or a file",
        "FileError source: found b'run', expected the path of a run or a file",
        "FileError source: found ['run'], expected the path of a run or a file",
    ], done.stderr


def test_settings_that_a_file_contradicts(run, tmp_path):
    export(run, tmp_path / "x.safetensors")
    assert load_backbone(tmp_path / "x.safetensors", heads=3, dtype="bfloat16").module.dtype == jnp.bfloat16
    with pytest.raises(InteropError, match="step: found 7, expected none"):
        load_backbone(tmp_path / "x.safetensors", step=7)


def test_prepare_gives_what_evaluations_see(backbone, photo):
    how = backbone.preprocess
    batch = next(eval_batches(open_source(f"folder:{photo.parent}"), size=16, resize=18, batch_size=1, reading=ImageReading("pil")))
    expected = normalise(batch.images, how.mean, how.std)
    pixels = np.asarray(Image.open(photo))
    for given in (photo, str(photo), Image.open(photo), pixels, pixels[None], [photo], pixels.transpose(2, 0, 1), jnp.asarray(pixels)):
        prepared = backbone.prepare(given)
        assert (prepared.shape, prepared.dtype) == ((1, 16, 16, 3), np.float32)
        np.testing.assert_allclose(prepared, expected, atol=1e-6)  # a division, by NumPy and by XLA
    mixed = backbone.prepare([photo, pixels[::-1], Image.open(photo).convert("CMYK").convert("RGB")])
    np.testing.assert_allclose(mixed[:1], expected, atol=1e-6)
    assert mixed.shape == (3, 16, 16, 3)
    assert backbone.prepare([]).shape == (0, 16, 16, 3)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "I;16"])
def test_pillow_images_of_every_mode(backbone, photo, mode, tmp_path):
    """As the decoder reads a file of the same pixels: without transparency, grey as three equal channels."""
    source = Image.open(photo)
    image = Image.fromarray(np.asarray(source.convert("L")).astype(np.uint16) * 257) if mode == "I;16" else source.convert(mode)
    if mode == "I;16":
        expected = source.convert("L").convert("RGB")
    else:
        expected = image.convert("RGB")
    np.testing.assert_array_equal(backbone.prepare(image), backbone.prepare(np.asarray(expected)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("missing.jpg", r"image 0 \(missing\.jpg\): .*No such file"),
        (".", r"image 0 \(\.\): .*directory"),
        ("a\0b.jpg", r"image 0 \(a\\x00b\.jpg\): .*null"),
        ("~nobody-of-this-name/a.jpg", r"image 0 \(~nobody-of-this-name/a\.jpg\): No such file"),
        ([np.zeros((16, 16, 3), np.uint8), Image.new("RGB", (0, 5))], "image 1: a Pillow image of 0 x 5 pixels: expected at least 1 x 1"),
        (np.zeros((16, 16, 3), np.float32), "image 0: samples of type float32 have no agreed range.*uint8 or uint16 levels"),
        (np.zeros((16, 16), np.uint8), "image 0: samples of shape 16 x 16"),
        (np.zeros((0, 16, 16, 3), np.float64)[0:0, 0:0], None),
        (Image.new("F", (16, 16)), "image 0: a Pillow image of mode F"),
        (Image.new("I", (16, 16)), "image 0: a Pillow image of mode I"),
        ([np.zeros((16, 16, 3), np.uint8), None], "image 1: found NoneType"),
        ({"a": 1}, "found dict"),
        (
            "https://host.example/photo.jpg",
            r"image 0 \(https://host.example/photo.jpg\): found an address, expected a path on this machine",
        ),
    ],
)
def test_what_prepare_cannot_read_is_named(backbone, tmp_path, monkeypatch, given, message):
    monkeypatch.chdir(tmp_path)
    if message is None:  # a stack of no images
        assert backbone.prepare(given).shape == (0, 16, 16, 3)
        return
    with pytest.raises(BackboneError, match=message):
        backbone.prepare(given)


def test_a_closed_image_and_a_pipe_are_named(backbone, photo, tmp_path):
    closed = Image.open(photo)
    closed.close()
    with pytest.raises(BackboneError, match="image 1: a Pillow image that cannot be read"):
        backbone.prepare([photo, closed])
    os.mkfifo(tmp_path / "pipe.png")  # nobody writes to it: reading it would wait for ever
    with pytest.raises(BackboneError, match=r"image 1 \(.*pipe\.png\): not a plain file"):
        backbone.prepare([photo, tmp_path / "pipe.png"])


def test_a_path_means_the_same_place_here_as_in_other_programs(backbone, photo, tmp_path, monkeypatch):
    """`..` behind a link is taken as the operating system takes it; `~` is the home directory."""
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "deep")
    shutil.copy(photo, tmp_path / "elsewhere" / "photo.png")
    monkeypatch.setenv("HOME", str(tmp_path / "elsewhere"))
    for path in (tmp_path / "link" / ".." / "photo.png", "~/photo.png"):
        np.testing.assert_array_equal(backbone.prepare(path), backbone.prepare(photo))


def test_a_name_that_is_not_utf8_and_a_damaged_file(backbone, tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9.png"
    with open(path, "wb") as file:
        file.write(b"no image")
    with pytest.raises(BackboneError, match=r"caf\\udce9\.png\): not a readable image"):
        backbone.prepare(os.fsdecode(path))


def test_help_version_and_completion_show_the_face():
    text = pydoc.plain(pydoc.render_doc(sere_jax))
    for part in ("load_backbone(", "Load the backbone of any checkpoint", "class Backbone", "sere_jax.load_backbone(", "prepare(self"):
        assert part in text
    assert {"load_backbone", "Backbone", "__version__"} <= set(dir(sere_jax))
    assert not {"Any", "annotations"} & set(dir(sere_jax))
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings["project"]["dynamic"] == ["version"]
    assert settings["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "sere_jax.__version__"}


def test_the_types_are_shipped():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "py.typed" in settings["tool"]["setuptools"]["package-data"]["sere_jax"]
    assert (ROOT / "sere_jax" / "py.typed").is_file()


def test_a_wrong_attribute_names_the_right_ones():
    code = "import sere_jax; sere_jax.load_backbon"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stderr
    assert "has no attribute 'load_backbon'; it has load_backbone, Backbone" in told
