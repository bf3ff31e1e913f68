"""Maps of a few channels, and the relations between channels (Fig. 1c of the TPAMI paper)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.figure import Figure

from sere_jax.evals.figures import canvas

_SIGNED = "RdBu_r"


def relation(tokens: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "d d"]:
    """The correlation of channels over positions: F^T F / n of channels with mean 0 and variance 1.

    The loss relates raw features. The correlation shows the same structure without being dominated by channels of large norm.
    """
    centred = tokens.astype(np.float64) - tokens.mean(0)
    scaled = centred / np.maximum(np.sqrt(np.mean(centred**2, axis=0)), 1e-12)
    return scaled.T @ scaled / len(tokens)


def choose(tokens: Float[np.ndarray, "n d"], count: int) -> Int[np.ndarray, " count"]:
    """Numbers of channels that respond to different things: the strongest first, then those of largest strength x novelty.

    Strength is the standard deviation over positions; novelty is 1 - the largest |correlation| with the channels so far.
    """
    strength, correlation = tokens.std(0), np.abs(relation(tokens))
    numbers = [int(strength.argmax())]
    while len(numbers) < min(count, tokens.shape[1]):
        score = strength * (1 - correlation[:, numbers].max(1))
        score[numbers] = -1
        numbers.append(int(score.argmax()))
    return np.asarray(numbers)


def draw(
    images: UInt8[np.ndarray, "b H W c"], patches: Sequence[Float[np.ndarray, "b h w d"]], caption: canvas.Caption, *, count: int = 6
) -> Figure:
    """A row for each image and network: photograph, relation of all channels, relation of a few of them, and their maps."""
    networks = len(caption.networks)
    count = min(count, min(features.shape[-1] for features in patches))
    figure, axes = canvas.grid(
        len(images) * networks,
        count + 4,
        title="Channels of the patch features and their self-relation",
        about=caption.lines,
        note="Relation: correlation of two channels over the patches of one image, by the colours of the bar. All channels are ordered by "
        "their first two principal axes. The maps are of channels that differ most; each has its own range, and #n is its number.",
        headings=[["image", "all channels", "some channels", "", *(f"channel {chr(65 + k)}" for k in range(count))]],
        widths=[1.0, 1.0, 1.0, canvas.BAR, *[1.0] * count],
        group=networks,
    )
    for i, image in enumerate(images):
        for j, features in enumerate(patches):
            row = axes[i * networks + j]
            caption.label(row[0], i, j)
            if j == 0:
                canvas.picture(row[0], image)
            _draw_channels(row[1:], features[i], count)
    return figure


def _draw_channels(row: np.ndarray, features: Float[np.ndarray, "h w d"], count: int) -> None:
    tokens = features.reshape(-1, features.shape[-1])
    correlation = relation(tokens)
    order = _order(correlation)
    canvas.heat(row[0], correlation[order][:, order], cmap=_SIGNED, limits=(-1.0, 1.0))
    numbers = choose(tokens, count)
    small = correlation[numbers][:, numbers]
    canvas.heat(row[1], small, cmap=_SIGNED, limits=(-1.0, 1.0))
    canvas.colour_bar(row[2], (-1.0, 1.0), cmap=_SIGNED)
    for (i, j), value in np.ndenumerate(small):
        place = ((j + 0.5) / count, (i + 0.5) / count)
        colour = "white" if abs(value) > 0.6 else canvas.INK
        text = chr(65 + i) if i == j else f"{value:.1f}".replace("-0.0", "0.0")
        row[1].text(*place, text, ha="center", va="center", fontsize=6.5, color=colour)
    for axis, channel in zip(row[3:], numbers, strict=True):
        canvas.heat(axis, features[..., channel])
        canvas.corner(axis, f"#{channel}")


def _order(correlation: Float[np.ndarray, "d d"]) -> Int[np.ndarray, " d"]:
    """An order by the angle in the plane of the two largest eigenvectors, which makes correlated channels neighbours."""
    _, vectors = np.linalg.eigh(correlation)
    return np.argsort(np.arctan2(vectors[:, -2], vectors[:, -1]), kind="stable")
