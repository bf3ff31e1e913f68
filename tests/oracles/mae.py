"""MAE, patch after patch in NumPy float64: encoder on visible patches, decoder, targets, loss. Parameters are nested dicts."""

from __future__ import annotations

import math

import numpy as np

from tests.oracles.vit import attention, gelu, layer_norm, linear, patch_embed


def block(params: dict, x: np.ndarray, heads: int) -> np.ndarray:
    """A pre-norm transformer block."""
    x = x + attention(params["attn"], layer_norm(params["norm1"], x), heads)
    return x + linear(params["mlp"]["fc2"], gelu(linear(params["mlp"]["fc1"], layer_norm(params["norm2"], x))))


def encode(params: dict, image: np.ndarray, mask: np.ndarray, *, patch: int, heads: int) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """image [H, W, c], mask [h, w] (True = hidden) -> the cls token, and the visible patches' tokens by their positions."""
    patches = patch_embed(params["patch_embed"]["proj"], image, patch)
    flat, positions = patches.reshape(-1, patches.shape[-1]), params["pos_embed"][0]
    places = [i for i in range(len(flat)) if not mask.reshape(-1)[i]]
    x = np.stack([params["cls_token"][0, 0] + positions[0], *(flat[i] + positions[1 + i] for i in places)])
    for i in range(sum(name.startswith("blocks_") for name in params)):
        x = block(params[f"blocks_{i}"], x, heads)
    x = layer_norm(params["norm"], x)
    return x[0], dict(zip(places, x[1:], strict=True))


def decode(params: dict, cls: np.ndarray, visible: dict[int, np.ndarray], positions: np.ndarray, *, heads: int) -> np.ndarray:
    """Predicted numbers of each patch [n, p]; `positions` [1 + n, width] is the fixed table."""
    tokens = [linear(params["embed"], cls) + positions[0]]
    for i in range(len(positions) - 1):
        token = linear(params["embed"], visible[i]) if i in visible else params["mask_token"][0, 0]
        tokens.append(token + positions[1 + i])
    x = np.stack(tokens)
    for i in range(sum(name.startswith("blocks_") for name in params)):
        x = block(params[f"blocks_{i}"], x, heads)
    return linear(params["predict"], layer_norm(params["norm"], x))[1:]


def patch_numbers(image: np.ndarray, patch: int) -> np.ndarray:
    """[n, p]: for each patch its pixels row by row, the channels of a pixel together."""
    out = []
    for top in range(0, image.shape[0], patch):
        for left in range(0, image.shape[1], patch):
            out.append([image[top + y, left + x, c] for y in range(patch) for x in range(patch) for c in range(image.shape[2])])
    return np.array(out, np.float64)


def loss(predicted: np.ndarray, images: np.ndarray, masks: np.ndarray, patch: int, *, normalise: bool) -> float:
    """predicted [b, n, p], images [b, H, W, c], masks [b, h, w]: the mean over all hidden patches of their mean squared error."""
    errors = []
    for guess, image, mask in zip(predicted, images, masks, strict=True):
        for i, numbers in enumerate(patch_numbers(image, patch)):
            if not mask.reshape(-1)[i]:
                continue
            if normalise:
                mean = sum(numbers) / len(numbers)
                var = sum((x - mean) ** 2 for x in numbers) / (len(numbers) - 1)
                numbers = (numbers - mean) / math.sqrt(var + 1e-6)
            errors.append(sum((guess[i] - numbers) ** 2) / len(numbers))
    return sum(errors) / len(errors)
