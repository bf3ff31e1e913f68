"""Image and label map move together: a mask painted by the image's own colours still agrees after any crop, flip and resize."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sere_jax.data.annotations.transforms import RandomCrop

LEVELS = np.array([20, 90, 160, 230])  # of the classes 0 to 3: further apart than rounding moves a level


def _columns_and_rows(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A map of up to four rectangles, split at a random row and column, so that position, flip and scale all show."""
    row, column = rng.integers(0, height + 1), rng.integers(0, width + 1)
    result = np.zeros((height, width), np.uint16)
    result[row:] += 1
    result[:, column:] += 2
    return result


@given(
    seed=st.integers(0, 10_000),
    sides=st.tuples(st.integers(8, 60), st.integers(8, 60)),
    size=st.integers(8, 40),
    lowest=st.sampled_from([0.1, 0.5, 1.0]),
    backend=st.sampled_from(["fast", "pil"]),
)
def test_a_map_painted_by_the_colours_of_its_image_still_agrees(seed, sides, size, lowest, backend):
    rng = np.random.default_rng(seed)
    label_map = _columns_and_rows(*sides, rng)
    image = np.repeat(LEVELS[label_map].astype(np.uint8)[..., None], 3, axis=2)
    transform = RandomCrop(size, (lowest, 1.0), flip_prob=0.5, backend=backend)
    out, moved = np.empty((size, size, 3), np.uint8), np.empty((size, size), np.uint16)
    transform(image, label_map, rng, out, moved)
    assert set(np.unique(moved)) <= set(np.unique(label_map))
    painted = np.abs(out[..., :1].astype(int) - LEVELS).argmin(axis=-1)
    # Interpolation mixes colours at an edge, over as many pixels of the result as one of the source covers, and the kernel's reach.
    reach = 2 + 2 * int(np.ceil(size / min(sides)))
    rows, columns = np.nonzero(painted != moved)
    for row, column in zip(rows, columns, strict=True):
        around = moved[max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1]
        assert len(np.unique(around)) > 1, (row, column)
