"""Sine and cosine positions, number by number (SPEC 1.7)."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sere_jax.ops.positions import sincos_positions


@pytest.mark.parametrize("first", ["rows", "columns"])
def test_every_number_of_the_table(first: str):
    width, height, columns = 12, 2, 3
    table = sincos_positions(width, (height, columns), first)
    assert table.shape == (1, 7, 12) and table.dtype == np.float32 and not np.any(table[0, 0])
    for row in range(height):
        for column in range(columns):
            one, other = (row, column) if first == "rows" else (column, row)
            expected = []
            for place, wave in ((one, math.sin), (one, math.cos), (other, math.sin), (other, math.cos)):
                expected += [wave(place / 10000 ** (i / 3)) for i in range(3)]
            np.testing.assert_allclose(table[0, 1 + row * columns + column], expected, atol=1e-7)


def test_a_width_that_has_no_quarters_is_refused():
    with pytest.raises(ValueError, match="found width 10, expected a multiple of 4"):
        sincos_positions(10, (2, 2), "rows")
