"""Files appear whole or not at all, with the mode that the umask gives."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pytest

from sere_jax.interop.files import write_json, write_tensors
from sere_jax.interop.torch_file import write_torch
from sere_jax.writing import replacing


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("name", ["x.safetensors", "x.npz", "x.json", "x.pth"])
def test_files_have_the_mode_of_the_umask(tmp_path, umask, name):
    path, tensors = tmp_path / name, {"a": np.zeros(3, np.float32)}
    if name.endswith(".json"):
        write_json(path, {"a": 1})
    elif name.endswith(".pth"):
        pytest.importorskip("torch")
        write_torch(path, {"teacher": tensors}, {})
    else:
        write_tensors(path, tensors, {})
    assert _mode(path) == 0o666 & ~umask
    assert os.listdir(tmp_path) == [name]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "new" / "x.txt"
    with replacing(path) as temporary:
        temporary.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["x.txt"]
