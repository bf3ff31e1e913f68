"""What a few channels respond to, and how they relate to each other (Fig. 1c of the TPAMI paper)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.figure import Figure

from sere_jax.evals.figures import canvas


def relation(tokens: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "d d"]:
    """F^T F / n of channels with their mean taken off and scaled to length 1: their correlation over the positions.

    The loss relates raw features; correlation shows the same structure without the few channels of large norm drowning
    the others.
    """
    centred = tokens.astype(np.float64) - tokens.mean(0)
    scaled = centred / np.maximum(np.sqrt(np.mean(centred**2, axis=0)), 1e-12)
    return scaled.T @ scaled / len(tokens)


def choose(tokens: Float[np.ndarray, "n d"], count: int) -> Int[np.ndarray, " count"]:
    """Channels that show different things: the strongest first, then always the one of largest strength x novelty.

    Strength is the standard deviation over positions, novelty 1 - the largest |correlation| with a chosen channel.
    """
    strength, correlation = tokens.std(0), np.abs(relation(tokens))
    chosen = [int(strength.argmax())]
    while len(chosen) < min(count, tokens.shape[1]):
        score = strength * (1 - correlation[:, chosen].max(1))
        score[chosen] = -1
        chosen.append(int(score.argmax()))
    return np.asarray(chosen)


def draw(
    images: UInt8[np.ndarray, "b H W 3"], patches: Sequence[Float[np.ndarray, "b h w d"]], names: Sequence[str], *, count: int = 6
) -> Figure:
    """A row for each image and network: photograph, relation of all channels, relation of the chosen ones, their maps."""
    title = "Channels of the patch features and their self-relation"
    note = "Correlation over the positions of one image: red 1, white 0, blue -1; all channels ordered by their first principal axes."
    figure, axes = canvas.grid(len(images) * len(names), count + 3, title=title, note=note, group=len(names))
    headings = ["image", "all channels", "chosen channels", *(f"channel {chr(65 + k)}" for k in range(count))]
    for axis, text in zip(axes[0], headings, strict=True):
        canvas.heading(axis, text)
    for i, image in enumerate(images):
        for j, (name, features) in enumerate(zip(names, patches, strict=True)):
            row = axes[i * len(names) + j]
            canvas.row_label(row[0], name)
            if j == 0:
                canvas.picture(row[0], image)
            _draw_channels(row[1:], features[i], count)
    return figure


def _draw_channels(row: np.ndarray, features: Float[np.ndarray, "h w d"], count: int) -> None:
    tokens = features.reshape(-1, features.shape[-1])
    correlation = relation(tokens)
    order = _order(correlation)
    canvas.heat(row[0], correlation[order][:, order], cmap="RdBu_r", limits=(-1.0, 1.0))
    chosen = choose(tokens, count)
    small = correlation[chosen][:, chosen]
    canvas.heat(row[1], small, cmap="RdBu_r", limits=(-1.0, 1.0))
    for (i, j), value in np.ndenumerate(small):
        place = ((j + 0.5) / len(chosen), (i + 0.5) / len(chosen))
        colour = "white" if abs(value) > 0.6 else canvas.INK
        row[1].text(
            *place, chr(65 + i) if i == j else f"{value:.1f}".replace("-0.0", "0.0"), ha="center", va="center", fontsize=6.5, color=colour
        )
    for axis, channel in zip(row[2:], chosen, strict=False):
        canvas.heat(axis, features[..., channel])
        canvas.corner(axis, f"#{channel}")


def _order(correlation: Float[np.ndarray, "d d"]) -> Int[np.ndarray, " d"]:
    """By angle in the plane of the two largest eigenvectors: correlated channels become neighbours."""
    _, vectors = np.linalg.eigh(correlation)
    return np.argsort(np.arctan2(vectors[:, -2], vectors[:, -1]), kind="stable")
