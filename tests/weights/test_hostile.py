"""Files of weights in which everything is valid by itself, and which no program would write: refused in a sentence, at once."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from sere_jax.interop import timm
from sere_jax.interop.files import FileError, read_tensors
from sere_jax.interop.tables import InteropError, flatten
from sere_jax.weights.read import read_weights
from tests.interop.test_integrity import _header, _npz
from tests.interop.test_timm import _params

ONE = np.ones(48, np.float32)
BASE = timm.to_timm(_params()[1])
OURS = {f"teacher/backbone/{name}": np.asarray(leaf) for name, leaf in flatten(_params()[1]).items()}
HF = {
    "embeddings.cls_token": np.ones((1, 1, 48), np.float32),
    "embeddings.position_embeddings": np.ones((1, 17, 48), np.float32),
    "embeddings.patch_embeddings.projection.weight": np.ones((48, 3, 4, 4), np.float32),
}
RESNET = {"conv1.weight": np.ones((8, 3, 7, 7), np.float32), "layer1.0.conv3.weight": np.ones((8, 8, 1, 1), np.float32)}
PREPROCESS = {"size": 16, "resize": 18, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "value_range": [0.0, 0.0]}
METADATA = {"layout": "timm", "network": "teacher", "architecture": {"heads": 3, "norm_eps": 1e-6}, "preprocess": PREPROCESS, "config": {}}


def refused(path: Path, message: str, **options: Any) -> None:
    begin = time.process_time()
    with pytest.raises((InteropError, FileError), match=message) as caught:
        read_weights(path, **options)
    assert str(caught.value).startswith(f"{path}: ") and time.process_time() - begin < 2


@pytest.mark.parametrize(
    ("tensors", "name"),
    [
        (BASE, "blocks.1000000000.norm1.weight"),
        (BASE, f"blocks.{'9' * 5000}.norm1.weight"),
        ({f"backbone.{name}": tensor for name, tensor in BASE.items()}, "backbone.blocks.1000000000.norm1.weight"),
        ({f"module.base_encoder.{name}": tensor for name, tensor in BASE.items()}, "module.base_encoder.blocks.1000000000.norm1.weight"),
        (OURS, "teacher/backbone/blocks_1000000000"),
        (HF, "encoder.layer.1000000000.attention.attention.query.weight"),
        (RESNET, "layer1000000000.0.conv1.weight"),
        (RESNET, "layer1.1000000000.conv1.weight"),
    ],
)
def test_a_name_cannot_ask_for_a_network_of_any_depth(tmp_path, tensors, name):
    save_file(tensors | {name: ONE}, tmp_path / "x.safetensors")
    refused(
        tmp_path / "x.safetensors",
        "(blocks|stages): found the number (1000000000|9{20}), expected one below",
        heads=3 * ("conv1.weight" not in tensors),
    )


@pytest.mark.parametrize(
    "name", ["teacher/backbone", "teacher/backbone/blocks_0", "teacher/backbone/norm/scale/x", "teacher/backbone/blocks/x"]
)
def test_a_name_that_is_a_leaf_and_a_branch(tmp_path, name):
    save_file(OURS | {name: ONE}, tmp_path / "x.safetensors")
    refused(tmp_path / "x.safetensors", "not those of a network", heads=3)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("patch_embed.proj.weight", (48, 3, 0, 0)),
        ("patch_embed.proj.weight", (48, 0, 4, 4)),
        ("cls_token", (1, 1, 0)),
        ("pos_embed", (1, 1, 48)),
    ],
)
def test_sizes_of_nothing(tmp_path, name, shape):
    save_file(BASE | {name: np.zeros(shape, np.float32)}, tmp_path / "x.safetensors")
    refused(tmp_path / "x.safetensors", "not the parameters of a ViT", heads=3)


def _save(path: Path, metadata: dict[str, Any]) -> Path:
    save_file(BASE, path, {name: value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()})
    return path


OTHERS = (None, [], ["x"], {"a": 1}, "x", -1, 1.5, True, float("nan"), float("inf"), 10**30)


@pytest.mark.parametrize("path", ["architecture/heads", "architecture/norm_eps", *(f"preprocess/{name}" for name in PREPROCESS)])
def test_metadata_of_an_export_are_of_their_kinds(tmp_path, path):
    part, name = path.split("/")
    for value in OTHERS:
        metadata = METADATA | {part: {**METADATA[part], name: value}}
        refused(_save(tmp_path / "x.safetensors", metadata), f"{path}: found .*, expected|heads: found|value_range")


@pytest.mark.parametrize("name", ["network", "architecture", "preprocess", "config", "step", "left", "arguments"])
def test_no_entry_of_metadata_ends_in_another_error(tmp_path, name):
    """Of an export it is told; in a file of another program's it is that program's affair."""
    for value in OTHERS:
        ours, theirs = _save(tmp_path / "x.safetensors", METADATA | {name: value}), _save(tmp_path / "y.safetensors", {name: value})
        try:
            read_weights(ours)
        except InteropError as error:
            assert f"{name}: found" in str(error) or "preprocess/" in str(error) or "heads: unknown" in str(error)
        read_weights(theirs, heads=0 if name == "arguments" and isinstance(value, dict) and "num_heads" in value else 3)


def test_as_many_means_as_channels(tmp_path):
    metadata = METADATA | {"preprocess": {**PREPROCESS, "mean": [0.5]}}
    refused(_save(tmp_path / "x.safetensors", metadata), "found 1 means and 3 stds, expected one for each of 3 channels")


def test_json_nested_however_deep(tmp_path):
    (tmp_path / "config.json").write_text("[" * 200_000)
    with pytest.raises(FileError, match="config.json: cannot be read as JSON"):
        read_weights(_save(tmp_path / "x.safetensors", {}), heads=3)
    (tmp_path / "config.json").unlink()
    read_weights(_save(tmp_path / "x.safetensors", {"config": "[" * 200_000}), heads=3)


def test_numbers_that_numpy_lacks_are_named(tmp_path):
    _header(tmp_path / "x.safetensors", {"norm.weight": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}, b"abcd")
    refused(tmp_path / "x.safetensors", "norm.weight: found numbers of type F8_E4M3")


def test_digests_that_are_no_dictionary(tmp_path):
    refused(_save(tmp_path / "x.safetensors", {"digests": ["a"]}), "digests: found list, expected a dictionary")


def test_an_array_without_a_header_is_named_without_advice(tmp_path):
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}" + b" " * 20_000
    _npz(tmp_path / "x.npz", {"w.npy": b"\x93NUMPY\2\0" + len(header).to_bytes(4, "little") + header + bytes(4)})
    refused(tmp_path / "x.npz", r"w: found no header of an array$")


def test_views_of_the_same_bytes_do_not_multiply_them(tmp_path):
    torch = pytest.importorskip("torch")
    square = torch.zeros(512, 512)
    torch.save({f"blocks.{number}.attn.proj.weight": square.T for number in range(100)}, tmp_path / "x.pth")
    assert (tmp_path / "x.pth").stat().st_size < 2 << 20
    with pytest.raises(FileError, match=r"x\.pth: .*found tensors of 68,157,440 bytes in a file of 1,"):
        read_tensors(tmp_path / "x.pth")


def test_our_own_entry_in_a_file_of_pytorch_is_a_dictionary(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"sere_jax": [1], "norm.weight": torch.ones(48)}, tmp_path / "x.pth")
    refused(tmp_path / "x.pth", "sere_jax: found list, expected a dictionary")
