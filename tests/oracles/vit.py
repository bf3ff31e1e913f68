"""A vision transformer and SERE's head, token by token in NumPy float64 (SPEC 1.1, 1.2). Parameters are nested dicts of arrays."""

from __future__ import annotations

import math

import numpy as np


def linear(params: dict, x: np.ndarray) -> np.ndarray:
    """x W + b, without b where there is none."""
    out = x.astype(np.float64) @ params["kernel"].astype(np.float64)
    return out + params["bias"] if "bias" in params else out


def gelu(x: np.ndarray) -> np.ndarray:
    """x Phi(x), exactly."""
    return np.vectorize(lambda u: 0.5 * u * (1 + math.erf(u / math.sqrt(2))))(x)


def layer_norm(params: dict, x: np.ndarray, epsilon: float = 1e-6) -> np.ndarray:
    """Normalisation of each token over its channels, biased variance."""
    out = np.stack([(token - token.mean()) / math.sqrt(token.var() + epsilon) for token in x.astype(np.float64)])
    return out * params["scale"] + params["bias"]


def softmax(row: np.ndarray) -> np.ndarray:
    """Softmax of one row."""
    e = np.exp(row - row.max())
    return e / e.sum()


def attention(params: dict, x: np.ndarray, heads: int) -> np.ndarray:
    """x [n, d] -> [n, d]; qkv's outputs are q of all heads, k of all heads, v of all heads."""
    n, d = x.shape
    width = d // heads
    qkv = linear(params["qkv"], x)
    mixed = np.zeros((n, d))
    for m in range(heads):
        q, k, v = (qkv[:, part * d + m * width : part * d + (m + 1) * width] for part in range(3))
        for i in range(n):
            weights = softmax(np.array([q[i] @ k[j] / math.sqrt(width) for j in range(n)]))
            mixed[i, m * width : (m + 1) * width] = sum(weights[j] * v[j] for j in range(n))
    return linear(params["proj"], mixed)


def patch_embed(params: dict, image: np.ndarray, patch: int) -> np.ndarray:
    """A strided convolution without overlap: image [H, W, c] -> [h, w, d]."""
    h, w = image.shape[0] // patch, image.shape[1] // patch
    kernel, bias = params["kernel"].astype(np.float64), params["bias"]
    out = np.zeros((h, w, kernel.shape[-1]))
    for i in range(h):
        for j in range(w):
            window = image[i * patch : (i + 1) * patch, j * patch : (j + 1) * patch].astype(np.float64)
            for channel in range(kernel.shape[-1]):
                out[i, j, channel] = (window * kernel[..., channel]).sum() + bias[channel]
    return out


def vit(params: dict, image: np.ndarray, *, patch: int, heads: int, keep: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """image [H, W, c] at the stored position embedding's size -> tokens (cls first) after and before the final norm.

    `keep` [depth, 2] scales the two branches of each block (drop path).
    """
    patches = patch_embed(params["patch_embed"]["proj"], image, patch)
    x = np.concatenate([params["cls_token"][0], patches.reshape(-1, patches.shape[-1])]) + params["pos_embed"][0]
    for i in range(sum(name.startswith("blocks_") for name in params)):
        block, scale = params[f"blocks_{i}"], (1.0, 1.0) if keep is None else keep[i]
        x = x + scale[0] * attention(block["attn"], layer_norm(block["norm1"], x), heads)
        x = x + scale[1] * linear(block["mlp"]["fc2"], gelu(linear(block["mlp"]["fc1"], layer_norm(block["norm2"], x))))
    return layer_norm(params["norm"], x), x


def batch_norm(params: dict, x: np.ndarray, epsilon: float = 1e-5) -> np.ndarray:
    """x [..., d] normalised a channel over everything else, with the batch's own biased variance."""
    flat = x.reshape(-1, x.shape[-1]).astype(np.float64)
    out = np.zeros_like(flat)
    for channel in range(flat.shape[1]):
        column = flat[:, channel]
        mean = sum(column) / len(column)
        var = sum((u - mean) ** 2 for u in column) / len(column)
        out[:, channel] = (column - mean) / math.sqrt(var + epsilon) * params["scale"][channel] + params["bias"][channel]
    return out.reshape(x.shape)


def running(old: float, new: float) -> float:
    """PyTorch's running statistic with momentum 0.1."""
    return 0.9 * old + 0.1 * new


def relation_head(params: dict, tokens: np.ndarray, *, student: bool) -> np.ndarray:
    """z = ReLU(BN(x)); the student's p = ReLU(BN(W z))."""
    z = np.maximum(batch_norm(params["bn"], tokens), 0)
    return np.maximum(batch_norm(params["predictor_bn"], linear(params["predictor"], z)), 0) if student else z
