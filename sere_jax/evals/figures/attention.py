"""Where the cls token of the last block looks, head by head (Fig. 4 of the TPAMI paper)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from sere_jax.evals.figures import canvas

MAX_HEADS = 12
_HIDDEN = 0.2  # stretched attention up to this is left out of the coloured overlay


def cls_attention(attention: Float[np.ndarray, "b m n n"], grid: tuple[int, int]) -> Float[np.ndarray, "b m h w"]:
    """The cls token's row of softmax attention on the patch tokens, as a map for each head."""
    return np.asarray(attention[:, :, 0, 1:], np.float32).reshape(*attention.shape[:2], *grid)


def keep_mass(attention: Float[np.ndarray, "h w"], share: float) -> Float[np.ndarray, "h w"]:
    """Zero all but the strongest patches that together hold `share` of the attention."""
    flat = attention.reshape(-1) / attention.sum()
    order = np.argsort(flat, kind="stable")
    kept = np.zeros_like(flat, bool)
    kept[order] = np.cumsum(flat[order]) > 1 - share
    return attention * kept.reshape(attention.shape)


def overlay(image: UInt8[np.ndarray, "H W 3"], attention: Float[np.ndarray, "m h w"]) -> Float[np.ndarray, "H W 3"]:
    """The photograph with a colour for each head, as opaque as the root of its stretched attention; weak values hidden."""
    height, width = image.shape[:2]
    out = image.astype(np.float32) / 255 * 0.75
    for number, head in enumerate(attention):
        alpha = np.sqrt(canvas.stretch(head))
        alpha = np.where(alpha <= _HIDDEN, 0, alpha)
        rows = np.arange(height) * head.shape[0] // height
        columns = np.arange(width) * head.shape[1] // width
        alpha = 0.8 * alpha[rows][:, columns, None] ** 2
        out = out * (1 - alpha) + np.asarray(to_rgb(canvas.COLOURS[number % len(canvas.COLOURS)])) * alpha
    return out


def draw(
    images: UInt8[np.ndarray, "b H W 3"], attentions: Sequence[Float[np.ndarray, "b m h w"]], names: Sequence[str], *, mass: float = 0.0
) -> Figure:
    """A row for each image and network: the photograph, all heads in colours, then every head by itself.

    With `mass` in (0, 1] a head's panel keeps only the patches that hold this share of its attention.
    """
    heads = min(MAX_HEADS, max(a.shape[1] for a in attentions))
    kept = f"; the patches that hold {100 * mass:.0f} % of a head's attention" if mass else ""
    note = f"Each head is stretched to its own range{kept}. The colours of the second column are the heads'."
    title = "Attention of the cls token in the last block"
    figure, axes = canvas.grid(len(images) * len(names), heads + 2, title=title, note=note, group=len(names))
    for i, image in enumerate(images):
        for j, (name, attention) in enumerate(zip(names, attentions, strict=True)):
            row = axes[i * len(names) + j]
            canvas.row_label(row[0], name)
            if j == 0:
                canvas.picture(row[0], image)
            canvas.picture(row[1], overlay(image, attention[i]))
            for m in range(min(heads, attention.shape[1])):
                canvas.heat(row[2 + m], keep_mass(attention[i, m], mass) if mass else attention[i, m])
    for axis, text in zip(axes[0], ["image", "all heads"], strict=False):
        canvas.heading(axis, text)
    for m in range(heads):
        canvas.heading(axes[0, 2 + m], f"head {m + 1}")
        axes[0, 2 + m].title.set_color(canvas.COLOURS[m % len(canvas.COLOURS)])
    return figure
