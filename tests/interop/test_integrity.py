"""Weights from strangers: damaged, swollen, misnamed and unusable files are refused with their names, in our own words."""

from __future__ import annotations

import io
import json
import random
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sere_jax import load_backbone
from sere_jax.interop import pickles, timm
from sere_jax.interop.files import FileError, read_tensors, write_tensors
from sere_jax.interop.formats import import_network
from sere_jax.interop.tables import InteropError
from sere_jax.interop.torch_file import write_torch
from tests.interop.test_timm import _params

TENSORS = {"norm.weight": np.arange(600, dtype=np.float32), "norm.bias": np.ones((2, 3), np.float32)}
ENDINGS = [".safetensors", ".npz", ".pth"]


def _write(path: Path, tensors: Any = TENSORS) -> Path:
    if path.suffix == ".pth":
        pytest.importorskip("torch")
        write_torch(path, {"teacher": tensors}, {"step": 7})
    else:
        write_tensors(path, tensors, {"step": 7})
    return path


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_flipped_bit_anywhere_is_an_error_or_changes_nothing(tmp_path, ending):
    """60 bits of each kind of file: of tensors, names, sizes, metadata and the archive's own tables."""
    whole = _write(tmp_path / f"x{ending}").read_bytes()
    expected, metadata = read_tensors(tmp_path / f"x{ending}")
    rng, refused, path = random.Random(0), 0, tmp_path / f"flipped{ending}"
    for _ in range(60):
        damaged, place = bytearray(whole), rng.randrange(8 * len(whole))
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            tensors, read = read_tensors(path)
        except FileError as error:
            assert str(error).startswith(f"{path}: cannot be read as {ending[1:]}: ")
            refused += 1
            continue
        assert tensors.keys() == expected.keys() and all(np.array_equal(tensors[name], expected[name]) for name in expected)
        # A flip in the name of the digests' own entry leaves an entry of another name; "format" is PyTorch's mark.
        assert {key: read.get(key) for key in metadata if key != "format"} == {key: metadata[key] for key in metadata if key != "format"}
    assert refused >= 40


def test_the_tensor_with_the_flipped_bit_is_named(tmp_path):
    path = _write(tmp_path / "x.safetensors")
    data = path.read_bytes()
    path.write_bytes(data.replace(np.float32(7).tobytes() + np.float32(8).tobytes(), np.float32(7).tobytes() + np.float32(9).tobytes()))
    with pytest.raises(FileError, match=r"x\.safetensors: .*not what was written.*: norm\.weight \(1 of 3 digests differ\)"):
        read_tensors(path)


def _npz(path: Path, entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


def _npy(array: np.ndarray, claimed: str = "") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, allow_pickle=True)
    shape = str(array.shape)
    return (
        stream.getvalue().replace(shape.encode() + b", }", (claimed + ", }").encode().ljust(len(shape) + 3))
        if claimed
        else stream.getvalue()
    )


def _bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w", force_zip64=True) as entry:
        for _ in range(100):
            entry.write(bytes(1 << 20))


def _header(path: Path, header: Any, data: bytes = b"") -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def _pickle(path: Path, operations: bytes) -> None:
    """An archive as PyTorch's, of a pickle that was written by hand."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02" + operations + b".")
        archive.writestr("x/version", "3\n")


def _doubled_tuples(levels: int) -> bytes:
    """A tuple of twice the tuple of twice the tuple ... of a 1."""
    return b"K\x01\x85q\x00" + b"".join(b"h%c\x86q%c" % (level, level + 1) for level in range(levels))


HOSTILE: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "empty": (".safetensors", lambda path: path.write_bytes(b""), "the file is empty"),
    "a web page": (".pth", lambda path: path.write_bytes(b"\n<!DOCTYPE html><p>Sign in"), "found a web page"),
    "a pointer": (".safetensors", lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid"), "pointer of Git LFS"),
    "an archive of nothing": (".npz", lambda path: _npz(path, {}), "without entries"),
    "an archive of the wrong name": (".safetensors", lambda path: _npz(path, {"a.npy": b"x"}), r"found a npz file .*end in \.npz"),
    "safetensors called pth": (".pth", lambda path: _header(path, {}, b" "), r"found a safetensors file .*end in \.safetensors"),
    "a bomb": (".npz", _bomb, "that unpacks to 104,857,600"),
    "more than its bytes": (".npz", lambda path: _npz(path, {"a.npy": _npy(np.zeros(10), "(1 << 40,)")}), "cannot be read"),
    "a shape beyond its bytes": (
        ".npz",
        lambda path: _npz(path, {"w.npy": _npy(np.zeros(1000), "(9999,)")}),
        "w: found 8,000 bytes, expected 79,992",
    ),
    "objects": (".npz", lambda path: _npz(path, {"w.npy": _npy(np.array([{}], object))}), "w: found Python objects"),
    "a header beyond the file": (".safetensors", lambda path: path.write_bytes((1 << 40).to_bytes(8, "little") + b"{}"), "cannot be read"),
    "a tensor beyond the file": (
        ".safetensors",
        lambda path: _header(path, {"w": {"dtype": "F32", "shape": [1 << 30], "data_offsets": [0, 1 << 32]}}),
        "cannot be read",
    ),
    "a name that takes ages to hash": (
        ".pth",
        lambda path: _pickle(path, b"}" + _doubled_tuples(60) + b"K\x01s"),
        "a tuple that holds tuples",
    ),
    "the same before 1.6": (
        ".pth",
        lambda path: path.write_bytes(b"\x80\x02}" + _doubled_tuples(60) + b"K\x01s."),
        "a tuple that holds tuples",
    ),
    "no JSON": (".safetensors", lambda path: _header(path, b"{]}" * 9), "cannot be read"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_a_sentence_and_little_memory(tmp_path, name):
    ending, write, message = HOSTILE[name]
    path = tmp_path / f"x{ending}"
    write(path)
    tracemalloc.start()
    try:
        with pytest.raises(FileError, match=message) as error:
            read_tensors(path)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    assert str(error.value).startswith(f"{path}: cannot be read as") and "pickle=" not in str(error.value)


def test_a_pickle_of_many_operations_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "_MOST_OPERATIONS", 100)
    _pickle(tmp_path / "x.pth", b"]" + b"K\x01a" * 60)
    with pytest.raises(FileError, match="a pickle of more than 100 operations"):
        read_tensors(tmp_path / "x.pth")


def _nested() -> dict[str, Any]:
    content: dict[str, Any] = {}
    content["again"] = content
    return content


def _doubling() -> dict[str, Any]:
    content: dict[str, Any] = {"leaf": 1}
    for _ in range(30):
        content = {"a": content, "b": content}
    return content


TORCH: dict[str, tuple[Callable[[Any], Any], str]] = {
    "expanded": (lambda torch: {"w": torch.zeros(1).expand(100_000, 100_000)}, r"w: found 4 bytes, expected 40,000,000,000"),
    "holds itself": (lambda torch: _nested(), "a dictionary that holds itself"),
    "a tuple for a name": (lambda torch: {"a": {(1, 2): torch.zeros(3)}}, "a: found a name of tuple"),
    "doubling": (lambda torch: _doubling(), "more than 100,000 names"),
    "sparse": (lambda torch: {"w": torch.eye(3).to_sparse()}, "w: found a tensor that is sparse"),
    "eight bits": (lambda torch: {"w": torch.zeros(3).to(torch.float8_e4m3fn)}, "w: found torch.float8_e4m3fn, which NumPy does not have"),
    "code": (lambda torch: {"w": pytest.importorskip}, "it holds objects of Python code"),
}


@pytest.mark.parametrize("name", TORCH)
def test_hostile_files_of_pytorch_are_refused_without_advice_to_trust_them(tmp_path, name):
    torch = pytest.importorskip("torch")
    content, message = TORCH[name]
    torch.save(content(torch), tmp_path / "x.pth")
    with pytest.raises(FileError, match=message) as error:
        read_tensors(tmp_path / "x.pth")
    assert "weights_only" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: np.where(x == x.flat[0], np.nan, x), r"norm\.weight: found \d+ of 48 values that are NaN or infinite"),
        (lambda x: np.full_like(x, -np.inf), r"norm\.weight: found 48 of 48 values"),
        (lambda x: (100 * x).astype(np.int8), r"norm\.weight: found int8, expected floating-point"),
        (lambda x: x.astype(np.complex64), r"norm\.weight: found complex64"),
        (lambda x: x > 0, r"norm\.weight: found bool"),
    ],
)
def test_weights_that_are_no_finite_numbers_are_refused(tmp_path, change, message):
    tensors = timm.to_timm(_params()[1])
    bad = tensors | {"norm.weight": change(tensors["norm.weight"])}
    write_tensors(tmp_path / "x.safetensors", bad, {})
    with pytest.raises(InteropError, match=rf"(?s)x\.safetensors: the weights cannot be used:.*{message}"):
        load_backbone(tmp_path / "x.safetensors", heads=3)
    # Tensors that are not taken may hold anything.
    import_network(tensors | {"head.weight": np.full((5, 48), np.nan, np.float32), "head.bias": np.zeros(5, np.int64)})
