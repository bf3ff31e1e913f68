"""Naive statement of iBOT's block masks (SPEC 1.6), with sets of patches instead of slices."""

from __future__ import annotations

import math


def block_mask(target, rows, columns, rng):
    """The set of hidden (row, column), with the draws area, aspect, top, left in that order."""
    hidden = set()
    low = (min(rows, columns) // 3) ** 2
    while len(hidden) < target:
        remaining = target - len(hidden)
        added = False
        for _attempt in range(10):
            area = low + (remaining - low) * rng.random()
            aspect = math.exp(math.log(0.3) + rng.random() * (math.log(1 / 0.3) - math.log(0.3)))
            h = round((area * aspect) ** 0.5)
            w = round((area / aspect) ** 0.5)
            if not (w < columns and h < rows):
                continue
            top = rng.integers(0, rows - h, endpoint=True)
            left = rng.integers(0, columns - w, endpoint=True)
            block = {(int(top) + i, int(left) + j) for i in range(h) for j in range(w)}
            if 0 < len(block - hidden) <= remaining:
                hidden |= block
                added = True
                break
        if not added:
            return hidden
    return hidden
