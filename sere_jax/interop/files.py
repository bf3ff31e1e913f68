"""Files of tensors with metadata: safetensors and npz to read and write, PyTorch's files to read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from sere_jax.buckets import Location, local_copy, path_of
from sere_jax.interop import torch_file
from sere_jax.interop.integrity import DIGESTS, UnsoundFile, check_archive, check_digests, check_kind, check_npz, digests
from sere_jax.interop.tables import Tensors
from sere_jax.writing import replacing

READABLE = (".safetensors", ".npz", *torch_file.ENDINGS)

_DTYPES = frozenset(["C64", "F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"])
_METADATA = "__metadata__"  # the entry of an npz for what safetensors keeps in its header


class FileError(ValueError):
    """A file cannot be read or written; the message names it."""


def write_tensors(path: str | Location, tensors: Tensors, metadata: Mapping[str, Any]) -> None:
    """Write `.safetensors` or `.npz`, by the name's ending; values of `metadata` are stored as JSON.

    The file appears whole or not at all. The safetensors metadata says `format` = `pt`, as other readers require: names and
    layouts are PyTorch's.

    Raises FileError on another ending, on bfloat16 in an npz, which NumPy alone could not read, and where the disk refuses.
    """
    path = path_of(path)
    texts = {key: value if isinstance(value, str) else json.dumps(value, sort_keys=True) for key, value in metadata.items()}
    texts[DIGESTS] = json.dumps(digests(tensors, texts), sort_keys=True)
    if path.suffix not in (".safetensors", ".npz"):
        raise FileError(f"{path}: found the ending {path.suffix!r}, expected .safetensors or .npz")
    if path.suffix == ".npz" and any(tensor.dtype.kind == "V" for tensor in tensors.values()):
        raise FileError(f"{path}: an npz cannot hold bfloat16; expected float32 or float16, or a .safetensors")
    try:
        with replacing(path) as temporary:
            if path.suffix == ".npz":
                entries: dict[str, Any] = {_METADATA: np.asarray(json.dumps(texts)), **tensors}
                np.savez(temporary, **entries)
            else:
                contiguous = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
                save_file(contiguous, temporary, {"format": "pt", **texts})
    except (OSError, SafetensorError) as error:
        raise FileError(f"{path}: cannot be written: {error}") from error


def read_tensors(path: str | Location) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read the tensors of a `.safetensors`, a `.npz` or a PyTorch file (see `torch_file`), and its metadata.

    Metadata are JSON values, {} where the file has none. A PyTorch file's `left` names what is not a tensor.
    Archives are checked by their checksums, and files that `write_tensors` wrote by the digests of their tensors.
    Raises FileError where the file is missing, damaged, of another kind, or unpacks to far more than it is.
    """
    path = path_of(path)
    if not path.name.endswith(READABLE):
        raise FileError(f"{path}: found the ending {path.suffix!r}, expected one of {', '.join(READABLE)}")
    if not path.is_file():
        raise FileError(f"{path}: no such file")
    try:
        with local_copy(path) as file:
            check_kind(file, "pytorch" if path.name.endswith(torch_file.ENDINGS) else path.suffix[1:])
            check_archive(file)
            if path.name.endswith(torch_file.ENDINGS):
                return torch_file.read_torch(file)
            tensors, texts = _read_npz(file) if path.suffix == ".npz" else _read_safetensors(file)
        written = json.loads(texts.pop(DIGESTS, "{}"))
        if written:
            check_digests(tensors, {key: text for key, text in texts.items() if key != "format"}, written)
    except Exception as error:  # zipfile, NumPy and safetensors raise many types on damaged bytes
        raise FileError(f"{path}: cannot be read as {path.suffix[1:]}: {error or type(error).__name__}") from error
    return tensors, {key: _decoded(text) for key, text in texts.items()}


def _read_npz(file: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    check_npz(file)
    with np.load(file, allow_pickle=False) as archive:
        tensors = {name: archive[name] for name in archive.files}
    return tensors, json.loads(str(tensors.pop(_METADATA, "{}")))


def _read_safetensors(file: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    import ml_dtypes  # noqa: F401  (teaches NumPy bfloat16)

    with safe_open(file, "np") as opened:
        texts = opened.metadata() or {}
        for name in opened.keys():  # noqa: SIM118  (it is no dictionary)
            if (dtype := opened.get_slice(name).get_dtype()) not in _DTYPES:
                raise UnsoundFile(f"{name}: found numbers of type {dtype}, which NumPy does not have; expected F32, F16 or BF16")
    return load_file(file), texts


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
