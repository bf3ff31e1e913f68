"""The digest of a leaf: equal to its statement, whatever the sharding; different where anything moved."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from sere_jax import sharding
from sere_jax.train.digest import digests


def _naive_digest(array: np.ndarray) -> int:
    """Statement of the digest, element by element in Python integers."""

    def mix(word: int) -> int:
        word = (word ^ (word >> 16)) * 0x85EBCA6B % 2**32
        word = (word ^ (word >> 13)) * 0xC2B2AE35 % 2**32
        return word ^ (word >> 16)

    words = np.frombuffer(np.ascontiguousarray(array).tobytes(), f"u{min(array.dtype.itemsize, 4)}")
    return sum(mix(int(word) ^ mix(i + 1)) for i, word in enumerate(words)) % 2**32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "int8", "uint8", "uint32", "bool", "float64", "int64"])
@pytest.mark.parametrize("shape", [(), (5,), (3, 1, 4), (0, 2)])
def test_digest_is_its_statement(dtype: str, shape: tuple[int, ...]):
    dtype_ = np.dtype(getattr(ml_dtypes, dtype, dtype))
    array = np.asarray(np.random.default_rng(1).normal(size=shape) * 50).astype(dtype_)
    assert digests({"x": array}) == [_naive_digest(array)]


def test_digest_does_not_depend_on_the_sharding_but_on_places_and_signs():
    array = np.asarray(jax.random.normal(jax.random.key(0), (16, 24)))
    mesh = sharding.make_mesh(4)
    spec = jax.sharding.PartitionSpec
    cuts = [spec(), spec("data"), spec(None, "fsdp"), spec("fsdp", "data"), spec(("data", "fsdp"))]
    placed = {str(cut): jax.device_put(array, jax.sharding.NamedSharding(mesh, cut)) for cut in cuts}
    assert set(digests(placed)) == {_naive_digest(array)}
    two_signs = array.copy()
    two_signs[0, :2] *= -1
    others = digests(
        {"transposed": array.T.copy(), "rolled": np.roll(array, 1), "signs": two_signs, "zeros": array * 0, "minus": array * -0.0}
    )
    assert len({*others, _naive_digest(array)}) == 6
    with pytest.raises(TypeError, match=r"state leaf phase: found complex64"):
        digests({"phase": jnp.zeros(2, jnp.complex64)})
