"""The first three principal components of patch features, shown as red, green and blue."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure

from sere_jax.evals.figures import canvas


def principal_colours(patches: Float[np.ndarray, "b h w d"]) -> tuple[Float[np.ndarray, "b h w 3"], Float[np.ndarray, " 3"]]:
    """Project on the three directions of largest variance over all patches of all images; also the shares of variance.

    Each component is stretched from its 1st to its 99th percentile. Its sign, which PCA leaves open, is chosen so that the
    largest weight is positive: the same features give the same colours.
    """
    flat = patches.reshape(-1, patches.shape[-1]).astype(np.float64)
    flat = flat - flat.mean(0)
    _, strength, directions = np.linalg.svd(flat, full_matrices=False)
    directions = directions[:3]
    signs = np.sign(np.take_along_axis(directions, np.abs(directions).argmax(1)[:, None], 1))
    scores = flat @ (directions * signs).T
    low, high = np.percentile(scores, [1, 99], axis=0)
    colours = np.clip((scores - low) / np.maximum(high - low, 1e-12), 0, 1)
    shares = strength**2 / max(float((strength**2).sum()), 1e-12)
    return colours.reshape(*patches.shape[:3], -1).astype(np.float32), shares[:3].astype(np.float32)


def percentages(shares: Float[np.ndarray, " c"]) -> str:
    """The shares as one word of a label, which is not broken into lines.

    >>> percentages(np.array([0.66, 0.24, 0.03])).split(" "), canvas.wrap("seed 0: " + percentages(np.array([0.66, 0.24, 0.03])), 19)
    (['66\\xa0+\\xa024\\xa0+\\xa03\\xa0%'], 'seed 0:\\n66\\xa0+\\xa024\\xa0+\\xa03\\xa0%')
    """
    return "\u00a0".join([*" + ".join(f"{100 * share:.0f}" for share in shares).split(), "%"])


def draw(images: UInt8[np.ndarray, "b H W c"], patches: Sequence[Float[np.ndarray, "b h w d"]], caption: canvas.Caption) -> Figure:
    """Photographs in the first row, and a row for each network below. Each network has one PCA, over all images shown."""
    figure, axes = canvas.grid(
        1 + len(patches),
        len(images),
        title="Patch features: first three principal components",
        about=caption.lines,
        note="Red, green, blue: components 1, 2, 3 of all images of a row. The percentages are their shares of the variance.",
        headings=[caption.images],
    )
    for axis, image in zip(axes[0], images, strict=True):
        canvas.picture(axis, image)
    canvas.row_label(axes[0, 0], "image")
    for row, (name, detail), features in zip(axes[1:], caption.networks, patches, strict=True):
        colours, shares = principal_colours(features)
        canvas.row_label(row[0], name, f"{detail}: {percentages(shares)}" if detail else percentages(shares))
        for axis, colour in zip(row, colours, strict=True):
            axis.imshow(colour, interpolation="nearest", extent=(0, 1, 1, 0))
    return figure
