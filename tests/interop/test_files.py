"""Files of tensors: what is written is read, types and metadata included; what cannot be read is named."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sere_jax.interop.files import FileError, read_tensors, write_tensors
from sere_jax.interop.tables import flatten, nest

METADATA = {"config": {"a": [1, 2.5], "b": {"c": True}}, "step": 7, "network": "teacher", "licence": "free text: {not JSON"}


KINDS = [("safetensors", np.float32), ("safetensors", ml_dtypes.bfloat16), ("safetensors", np.float16), ("npz", np.float32)]


@pytest.mark.parametrize(("ending", "dtype"), KINDS)
def test_round_trip(tmp_path, ending, dtype):
    rng = np.random.default_rng(0)
    # A transposed view: its bytes do not lie in the order of its shape.
    tensors = {"a.weight": rng.normal(size=(3, 5)).astype(dtype).T, "b/c": np.zeros((), dtype), "empty": np.zeros((0, 2), dtype)}
    path = tmp_path / "new" / f"x.{ending}"
    write_tensors(path, tensors, METADATA)
    read, metadata = read_tensors(path)
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert np.array_equal(read[name], tensor)
    assert {key: metadata[key] for key in METADATA} == METADATA
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_readers_of_pytorch_files_find_their_format(tmp_path):
    write_tensors(tmp_path / "x.safetensors", {"a": np.zeros(2, np.float32)}, {})
    assert read_tensors(tmp_path / "x.safetensors")[1] == {"format": "pt"}


@pytest.mark.parametrize("ending", ["safetensors", "npz"])
def test_damaged_and_missing_files_are_named(tmp_path, ending):
    path = tmp_path / f"x.{ending}"
    with pytest.raises(FileError, match="no such file"):
        read_tensors(path)
    write_tensors(path, {"a": np.zeros(1000, np.float32)}, {})
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(FileError, match=f"cannot be read as {ending}"):
        read_tensors(path)


def test_other_endings_are_refused(tmp_path):
    with pytest.raises(FileError, match=r"found the ending '\.pth', expected \.safetensors or \.npz"):
        write_tensors(tmp_path / "x.pth", {}, {})
    with pytest.raises(FileError, match="cannot hold bfloat16"):
        write_tensors(tmp_path / "x.npz", {"a": np.zeros(2, ml_dtypes.bfloat16)}, {})


_NAMES = st.text("abc_0.", min_size=1)


@given(
    st.recursive(st.integers(), lambda inner: st.dictionaries(_NAMES, inner, min_size=1), max_leaves=8).filter(
        lambda x: isinstance(x, dict)
    )
)
def test_flatten_and_nest_are_inverse(tree):
    assert nest(flatten(tree)) == tree
