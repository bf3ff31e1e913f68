"""Attention of the cls token in the last block, head by head (Fig. 4 of the TPAMI paper)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from sere_jax.evals.figures import canvas

MAX_HEADS = 12
_HIDDEN = 0.2  # the coloured overlay leaves out patches with a root of stretched attention up to this


def cls_attention(attention: Float[Any, "b m n n"], grid: tuple[int, int]) -> Float[Any, "b m h w"]:
    """The cls token's softmax attention to the patch tokens, as a map for each head."""
    return attention[:, :, 0, 1:].astype(np.float32).reshape(*attention.shape[:2], *grid)


def keep_mass(attention: Float[np.ndarray, "h w"], share: float) -> Float[np.ndarray, "h w"]:
    """Set all patches to zero but the strongest, which together hold `share` of the attention."""
    flat = attention.reshape(-1) / attention.sum()
    order = np.argsort(flat, kind="stable")
    strong = np.zeros_like(flat, bool)
    strong[order] = np.cumsum(flat[order]) > 1 - share
    return attention * strong.reshape(attention.shape)


def overlay(image: UInt8[np.ndarray, "H W c"], attention: Float[np.ndarray, "m h w"]) -> Float[np.ndarray, "H W 3"]:
    """The photograph with a colour for each head, whose opacity is 0.8 x the head's attention, stretched to [0, 1].

    Attention is enlarged by its nearest patch. Patches where its square root is at most 0.2 stay clear.
    """
    height, width = image.shape[:2]
    out = canvas.shown(image).astype(np.float32) / 255 * 0.75
    for number, head in enumerate(attention):
        alpha = np.sqrt(canvas.stretch(head))
        alpha = np.where(alpha <= _HIDDEN, 0, alpha)
        rows = np.arange(height) * head.shape[0] // height
        columns = np.arange(width) * head.shape[1] // width
        alpha = 0.8 * alpha[rows][:, columns, None] ** 2  # the root is for the threshold only; as opacity it would hide the photograph
        out = out * (1 - alpha) + np.asarray(to_rgb(canvas.COLOURS[number % len(canvas.COLOURS)])) * alpha
    return out


def draw(
    images: UInt8[np.ndarray, "b H W c"],
    attentions: Sequence[Float[np.ndarray, "b m h w"]],
    caption: canvas.Caption,
    *,
    mass: float = 0.0,
) -> Figure:
    """A row for each image and network: the photograph, all heads in colours, then each head by itself.

    With `mass` in (0, 1] a head's panel keeps only the patches that hold this share of its attention.
    """
    networks = len(caption.networks)
    heads = min(MAX_HEADS, max(a.shape[1] for a in attentions))
    note = " ".join(_notes(max(a.shape[1] for a in attentions), mass))
    figure, axes = canvas.grid(
        len(images) * networks,
        heads + 2,
        title="Attention of the cls token in the last block",
        about=caption.lines,
        note=note,
        headings=[["image", "all heads", *(f"head {m + 1}" for m in range(heads))]],
        group=networks,
    )
    for m in range(heads):
        axes[0, 2 + m].title.set_color(canvas.COLOURS[m % len(canvas.COLOURS)])
    for i, image in enumerate(images):
        for j, attention in enumerate(attentions):
            row = axes[i * networks + j]
            caption.label(row[0], i, j)
            if j == 0:
                canvas.picture(row[0], image)
            canvas.picture(row[1], overlay(image, attention[i]))
            for m in range(min(heads, attention.shape[1])):
                canvas.heat(row[2 + m], keep_mass(attention[i, m], mass) if mass else attention[i, m])
    return figure


def _notes(heads: int, mass: float) -> Iterator[str]:
    yield "Brighter: the cls token attends more to this patch. Each panel has its own range."
    if mass:
        yield f"Black: patches beyond those that hold {100 * mass:.0f} % of the head's attention."
    yield "All heads: a colour for each head, as in the headings; faint attention is left out."
    if heads > MAX_HEADS:
        yield f"The first {MAX_HEADS} of {heads} heads are shown by themselves."
