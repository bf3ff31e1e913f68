"""A disk that fills while a file is written: one of the documented errors, and neither half a file nor its space stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from sere_jax.data.prepare.shards import Output, PrepareError, Shard
from sere_jax.evals import feature_files
from sere_jax.evals.figures import canvas
from sere_jax.interop.files import FileError, write_tensors
from sere_jax.interop.torch_file import TorchFileError, write_torch
from sere_jax.reporting import table
from sere_jax.writing import WriteError, writing_to
from tests.full_disk import no_file_above

_RNG = np.random.default_rng(0)
_TENSORS = {f"block{number}": _RNG.normal(size=(64, 64)).astype(np.float32) for number in range(4)}  # 64 KiB of noise


def _shard(directory: Path) -> None:
    records = [(str(number), _RNG.bytes(16384)) for number in range(4)]
    Output(str(directory), {}).write(Shard("x.array_record-00000-of-00001", "train", 0, 4), records)


def _features(layout: str, directory: Path) -> None:
    with feature_files.Shards(directory, 64, layout, "float32", {}) as shards:
        for number in range(64):
            shards.add({"position": number}, {"features": _RNG.normal(size=256)})


def _several_files_of_features(directory: Path) -> None:
    with feature_files.Shards(directory, 2, "npz", "float32", {"classes": ["a" * 100] * 400}) as shards:
        for number in range(8):
            shards.add({"position": number}, {"features": _RNG.normal(size=256)})


def _figure(directory: Path) -> None:
    figure = Figure()
    figure.add_subplot().imshow(_RNG.random((200, 200)))
    canvas.save(figure, directory / "x.png")


WRITERS: dict[str, tuple[Callable[[Path], None], type[Exception] | tuple[type[Exception], ...]]] = {
    "safetensors": (lambda directory: write_tensors(directory / "x.safetensors", _TENSORS, {}), FileError),
    "npz": (lambda directory: write_tensors(directory / "x.npz", _TENSORS, {}), FileError),
    "PyTorch": (lambda directory: write_torch(directory / "x.pth", {"teacher": _TENSORS}, {}), TorchFileError),
    "ArrayRecord": (_shard, (PrepareError, WriteError)),
    "Parquet": (lambda directory: _features("parquet", directory), WriteError),
    "npz of features": (lambda directory: _features("npz", directory), WriteError),
    "several files of features, whose description fails": (_several_files_of_features, WriteError),
    "figure": (_figure, WriteError),
    "table": (lambda directory: table.write(directory / "x.json", {"rows": ["a" * 100] * 400}), WriteError),
}


@pytest.mark.parametrize("size", [0, 5000, 20000])
@pytest.mark.parametrize("writer", WRITERS)
def test_every_writer_says_so_and_leaves_nothing(tmp_path: Path, writer: str, size: int):
    write, expected = WRITERS[writer]
    with pytest.raises(expected) as raised, writing_to(tmp_path), no_file_above(size):  # as the commands write
        write(tmp_path)
    assert "\n" not in str(raised.value)
    left = [path for path in tmp_path.rglob("*") if path.is_file() and ".unfinished" not in path.parts]  # notes of a preparation stay
    assert not left, left
