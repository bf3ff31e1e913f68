"""The forward pass of timm's VisionTransformer in NumPy float64, from tensors by timm's names (PyTorch layouts)."""

from __future__ import annotations

import numpy as np
from scipy.special import erf


def _linear(tensors: dict, name: str, x: np.ndarray) -> np.ndarray:
    return x @ tensors[f"{name}.weight"].T.astype(np.float64) + tensors[f"{name}.bias"]


def _layer_norm(tensors: dict, name: str, x: np.ndarray) -> np.ndarray:
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-6) * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]


def _gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + erf(x / np.sqrt(2))) / 2


def _patch_embed(tensors: dict, image: np.ndarray) -> np.ndarray:
    """image [c, H, W]; a convolution [d, c, p, p] with stride p, one patch after the other in rows."""
    weight, bias = tensors["patch_embed.proj.weight"].astype(np.float64), tensors["patch_embed.proj.bias"]
    p = weight.shape[-1]
    rows, columns = image.shape[1] // p, image.shape[2] // p
    patches = [image[:, i * p : (i + 1) * p, j * p : (j + 1) * p] for i in range(rows) for j in range(columns)]
    return np.stack([np.tensordot(weight, patch, axes=3) + bias for patch in patches])


def _attention(tensors: dict, name: str, x: np.ndarray, heads: int) -> np.ndarray:
    n, d = x.shape
    qkv = _linear(tensors, f"{name}.qkv", x).reshape(n, 3, heads, d // heads)
    out = np.zeros((n, heads, d // heads))
    for m in range(heads):
        q, k, v = qkv[:, 0, m], qkv[:, 1, m], qkv[:, 2, m]
        scores = q @ k.T / np.sqrt(d // heads)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out[:, m] = weights / weights.sum(-1, keepdims=True) @ v
    return _linear(tensors, f"{name}.proj", out.reshape(n, d))


def forward(tensors: dict, image: np.ndarray, heads: int) -> np.ndarray:
    """image [H, W, c] at the size of the position embedding -> tokens [1 + n, d], cls first, after the final norm."""
    x = _patch_embed(tensors, image.astype(np.float64).transpose(2, 0, 1))
    x = np.concatenate([tensors["cls_token"][0], x]) + tensors["pos_embed"][0]
    for i in range(sum(name.endswith("attn.qkv.bias") for name in tensors)):
        block = f"blocks.{i}"
        x = x + _attention(tensors, f"{block}.attn", _layer_norm(tensors, f"{block}.norm1", x), heads)
        hidden = _gelu(_linear(tensors, f"{block}.mlp.fc1", _layer_norm(tensors, f"{block}.norm2", x)))
        x = x + _linear(tensors, f"{block}.mlp.fc2", hidden)
    return _layer_norm(tensors, "norm", x)


def dino_logits(tensors: dict, cls: np.ndarray) -> np.ndarray:
    """DINO's head on tokens [b, d], by DINO's names: three linear layers, L2 normalisation, weight-normalised rows."""
    x = cls.astype(np.float64)
    for i in (0, 2):
        x = _gelu(_linear(tensors, f"head.mlp.{i}", x))
    x = _linear(tensors, "head.mlp.4", x)
    x = x / np.linalg.norm(x, axis=-1, keepdims=True)
    v = tensors["head.last_layer.weight_v"]
    rows = tensors["head.last_layer.weight_g"] * v / np.linalg.norm(v, axis=-1, keepdims=True)
    return x @ rows.T
