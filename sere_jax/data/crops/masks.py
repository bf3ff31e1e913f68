"""Which patches masked image modelling hides: block and random masks over the patch grid (iBOT's recipe, after BEiT)."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int

_BLOCK_ASPECT = 0.3  # height / width of a block is log-uniform in [0.3, 1 / 0.3]
_TRIES = 10


@dataclasses.dataclass(frozen=True)
class MaskRecipe:
    """How much of a view is hidden and in what shape, for a patch grid of `grid` rows and as many columns, or `columns`.

    With probability `prob` the share of hidden patches is drawn from U(ratio[1] -+ ratio_var[1]), else from
    U(ratio[0] -+ ratio_var[0]); the defaults are iBOT's: nothing hidden in half of the views, U(.1, .5) in the others.
    """

    grid: int
    kind: Literal["block", "random"] = "block"
    ratio: tuple[float, float] = (0.0, 0.3)
    ratio_var: tuple[float, float] = (0.0, 0.2)
    prob: float = 0.5
    start_step: int = 0  # nothing is hidden before (iBOT's pred_start_epoch)
    columns: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the patch grid."""
        return self.grid, self.columns or self.grid

    @property
    def cap(self) -> int:
        """The most patches h w that any view can hide: floor(max ratio * h w)."""
        return math.floor(max(mean + var for mean, var in zip(self.ratio, self.ratio_var, strict=True)) * math.prod(self.shape))


def sample_masks(recipe: MaskRecipe, views: int, rng: np.random.Generator) -> tuple[Bool[np.ndarray, "v h w"], Int[np.ndarray, "v cap"]]:
    """Masks of `views` views (True = hidden) and the hidden patches' flat positions, ascending, padded with -1 to `cap`."""
    draw = {"block": block_mask, "random": random_mask}[recipe.kind]
    masks = np.stack([draw(sample_ratio(recipe, rng) * math.prod(recipe.shape), recipe.shape, rng) for _ in range(views)])
    indices = np.full((views, recipe.cap), -1, np.int32)
    for row, mask in zip(indices, masks, strict=True):
        hidden = np.flatnonzero(mask)
        row[: len(hidden)] = hidden
    return masks, indices


def no_masks(recipe: MaskRecipe, views: int) -> tuple[Bool[np.ndarray, "v h w"], Int[np.ndarray, "v cap"]]:
    """Masks that hide nothing, in the form of `sample_masks`."""
    return np.zeros((views, *recipe.shape), np.bool_), np.full((views, recipe.cap), -1, np.int32)


def sample_ratio(recipe: MaskRecipe, rng: np.random.Generator) -> float:
    """The share of patches to hide in one view, from one of the recipe's two ranges."""
    which = int(rng.random() < recipe.prob)
    mean, var = recipe.ratio[which], recipe.ratio_var[which]
    return mean + var * (2 * rng.random() - 1)


def random_mask(target: float, grid: tuple[int, int], rng: np.random.Generator) -> Bool[np.ndarray, "h w"]:
    """floor(target) patches of a grid (h, w), every choice equally likely."""
    mask = np.zeros(math.prod(grid), np.bool_)
    mask[rng.permutation(len(mask))[: int(target)]] = True
    return mask.reshape(grid)


def block_mask(target: float, grid: tuple[int, int], rng: np.random.Generator) -> Bool[np.ndarray, "h w"]:
    """Rectangles laid over each other until `target` patches are hidden or no rectangle fits; never more than `target`.

    A rectangle's area ~ U(floor(min(h, w) / 3)^2, patches still to hide) (near the end the lower bound may be the larger one),
    log(height / width) ~ U(-+log(1 / 0.3)), sides rounded. It is taken when it is smaller than the grid (h, w) both ways and
    hides at least one new patch but no more than still to hide; ten rectangles in a row that fail end the mask.
    """
    mask = np.zeros(grid, np.bool_)
    hidden = 0
    while hidden < target:
        new = _add_block(mask, target - hidden, rng)
        if new == 0:
            break
        hidden += new
    return mask


def _add_block(mask: np.ndarray, remaining: float, rng: np.random.Generator) -> int:
    """Hide one more rectangle in place; the number of newly hidden patches, 0 when ten tries failed."""
    rows, columns = mask.shape
    smallest = (min(rows, columns) // 3) ** 2
    for _ in range(_TRIES):
        area = smallest + (remaining - smallest) * rng.random()
        aspect = math.exp(-math.log(_BLOCK_ASPECT) * (2 * rng.random() - 1))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height >= rows or width >= columns:
            continue
        top, left = int(rng.integers(rows - height + 1)), int(rng.integers(columns - width + 1))
        block = mask[top : top + height, left : left + width]
        new = height * width - int(block.sum())
        if 0 < new <= remaining:
            block[...] = True
            return new
    return 0
