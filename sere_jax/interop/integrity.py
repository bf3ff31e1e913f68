"""Whether a file of weights is sound: its kind, the checksums and sizes inside an archive, the digests of our own exports, its numbers."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from sere_jax.interop.tables import Tensors

DIGESTS = "digests"  # the metadata entry of our exports: tensor -> digest, and the texts' own under ""
_UNPACKED = 20  # times its own size that an archive may unpack to; weights hardly shrink at all
_SMALL = 64 << 20  # bytes that any archive may unpack to
_KINDS = {"npz": ".npz", "safetensors": ".safetensors", "pytorch": ".pth"}
_SHOWN = 5


class UnsoundFile(ValueError):
    """A file of weights is damaged, or is not what it claims to be."""


def check_kind(path: Path, expected: str) -> None:
    """Raise UnsoundFile where the first bytes show another kind of file than `expected`: npz, safetensors or pytorch."""
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        raise UnsoundFile("the file is empty")
    if start.startswith(b"version https://git-lfs"):
        raise UnsoundFile("found a pointer of Git LFS, expected the file that it stands for (git lfs pull)")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UnsoundFile("found a web page, expected weights: the download asked for another address or for a login")
    kind = _kind(path, start)
    if kind not in ("", expected):
        raise UnsoundFile(f"found a {kind} file by its content; rename it to end in {_KINDS[kind]}")


def _kind(path: Path, start: bytes) -> str:
    """npz, safetensors or pytorch, "" where the content shows none of them."""
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        return "safetensors"
    if not start.startswith(b"PK"):
        return ""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith("data.pkl") for name in names):
        return "pytorch"
    return "npz" if any(name.endswith(".npy") for name in names) else ""


def check_archive(path: Path) -> None:
    """Read a zip archive once, a piece at a time, and raise UnsoundFile where it is empty, damaged, or unpacks to far more than it is.

    NumPy reads an array before its checksum is known, and PyTorch compares none. Other files pass.
    """
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            return
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if not entries:
            raise UnsoundFile("found an archive without entries")
        if len({entry.filename for entry in entries}) < len(entries):
            raise UnsoundFile("found two entries of the same name in the archive")
        total = sum(entry.file_size for entry in entries)
        if total > max(_SMALL, _UNPACKED * size) or sum(entry.compress_size for entry in entries) > size:
            raise UnsoundFile(f"found an archive of {size:,} bytes that unpacks to {total:,}, more than any weights do")
        try:
            damaged = archive.testzip()
        except Exception as error:  # zlib's errors, encryption, compressions that Python lacks
            raise UnsoundFile(f"an entry cannot be unpacked: {error}") from error
    if damaged is not None:
        raise UnsoundFile(f"{damaged}: found bytes with another checksum (CRC) than was written: the file is damaged")


def check_npz(path: Path) -> None:
    """Raise UnsoundFile where an array claims another size than its entry has, or holds Python objects. Nothing is allocated for it."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            name = entry.filename.removesuffix(".npy")
            with archive.open(entry) as file:
                shape, dtype = _array_header(file, name)
                start = file.tell()
            if dtype.hasobject:
                raise UnsoundFile(f"{name}: found Python objects, expected an array of numbers")
            claimed = int(np.prod(shape, dtype=object)) * dtype.itemsize
            if claimed != entry.file_size - start:
                raise UnsoundFile(f"{name}: found {entry.file_size - start:,} bytes, expected {claimed:,} for its shape {list(shape)}")


def _array_header(file: Any, name: str) -> tuple[tuple[int, ...], np.dtype]:
    try:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(file)
    except Exception as error:  # of many types; some advise to load the file in a way that runs code in it
        raise UnsoundFile(f"{name}: found no header of an array") from error
    return shape, dtype


def check_unpacked(claimed: int, size: int) -> None:
    """Raise UnsoundFile where tensors of a file of `size` bytes take far more, as views of the same bytes may."""
    if claimed > max(_SMALL, _UNPACKED * size):
        raise UnsoundFile(f"found tensors of {claimed:,} bytes in a file of {size:,}, more than any weights take")


def digests(tensors: Tensors, texts: Mapping[str, str]) -> dict[str, str]:
    """The digest of each tensor (type, shape and bytes), and of the texts beside them under the name ""."""
    named = {name: _digest(tensor) for name, tensor in tensors.items()}
    return named | {"": hashlib.sha256(json.dumps(dict(texts), sort_keys=True).encode()).hexdigest()[:16]}


def _digest(tensor: np.ndarray) -> str:
    array = np.asarray(tensor, order="C")
    digest = hashlib.sha256(f"{array.dtype}{list(array.shape)}".encode())
    digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()[:16]


def check_digests(tensors: Tensors, texts: Mapping[str, str], written: Any) -> None:
    """Hold tensors and texts against the digests that were written with them. Raises UnsoundFile with the names that differ."""
    if not isinstance(written, Mapping):
        raise UnsoundFile(f"{DIGESTS}: found {type(written).__name__}, expected a dictionary")
    read = digests(tensors, texts)
    wrong = [name or "the metadata" for name in {**written, **read} if written.get(name) != read.get(name)]
    if wrong:
        raise UnsoundFile(f"not what was written, so the file is damaged: {_listed(wrong)} ({len(wrong)} of {len(read)} digests differ)")


def check_numbers(tensors: Tensors) -> None:
    """Raise UnsoundFile with every tensor that holds no floating-point numbers, or a value that is not finite."""
    lines = []
    for name, tensor in tensors.items():
        if not (np.issubdtype(tensor.dtype, np.floating) or tensor.dtype == ml_dtypes.bfloat16):
            lines.append(f"{name}: found {tensor.dtype}, expected floating-point numbers")
        elif not (finite := np.isfinite(tensor)).all():
            lines.append(f"{name}: found {finite.size - np.count_nonzero(finite):,} of {finite.size:,} values that are NaN or infinite")
    if lines:
        raise UnsoundFile("the weights cannot be used:\n" + "\n".join(f"  {line}" for line in lines[:_SHOWN] + _rest(lines)))


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN] + _rest(names))


def _rest(items: list[str]) -> list[str]:
    return [f"and {len(items) - _SHOWN} more"] if len(items) > _SHOWN else []
