"""A ResNet of bottleneck blocks, one output pixel after the other in NumPy float64. Parameters are nested dicts of arrays."""

from __future__ import annotations

import math

import numpy as np


def convolution(kernel: np.ndarray, x: np.ndarray, stride: int, padding: int, dilation: int = 1) -> np.ndarray:
    """x [b, h, w, c] by kernel [k, k, c, d], zeros beyond the border; it takes every `dilation`-th pixel."""
    k = dilation * (kernel.shape[0] - 1) + 1
    x = np.pad(x.astype(np.float64), ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    height, width = ((side - k) // stride + 1 for side in x.shape[1:3])
    out = np.zeros((len(x), height, width, kernel.shape[3]))
    for i in range(height):
        for j in range(width):
            window = x[:, i * stride : i * stride + k : dilation, j * stride : j * stride + k : dilation]
            out[:, i, j] = np.tensordot(window, kernel.astype(np.float64), axes=3)
    return out


def max_pool(x: np.ndarray) -> np.ndarray:
    """The largest of 3 x 3 pixels every second pixel, a border of one that never wins."""
    height, width = ((side - 1) // 2 + 1 for side in x.shape[1:3])
    out = np.zeros((len(x), height, width, x.shape[3]))
    for i in range(height):
        for j in range(width):
            out[:, i, j] = x[:, max(2 * i - 1, 0) : 2 * i + 2, max(2 * j - 1, 0) : 2 * j + 2].max((1, 2))
    return out


def batch_norm(params: dict, stats: dict | None, x: np.ndarray) -> np.ndarray:
    """By the batch's own mean and biased variance, or by running ones."""
    out = np.zeros_like(x)
    for d in range(x.shape[-1]):
        channel = x[..., d]
        mean, var = (channel.mean(), channel.var()) if stats is None else (stats["mean"][d], stats["var"][d])
        out[..., d] = (channel - mean) / math.sqrt(var + 1e-5) * params["scale"][d] + params["bias"][d]
    return out


def resnet(
    params: dict, stats: dict | None, images: np.ndarray, stages: tuple[int, ...], changed: dict[str, tuple[int, int]] | None = None
) -> np.ndarray:
    """Images [b, H, W, c] -> the last map [b, h, w, d]; `stats` None: training mode; `changed`: block -> its stride and dilation."""

    def normed(norm: str, conv: str, at: dict, running: dict | None, x: np.ndarray, stride: int, dilation: int = 1) -> np.ndarray:
        kernel = at[conv]["kernel"]
        padding = dilation * (kernel.shape[0] // 2)
        return batch_norm(at[norm], running and running[norm], convolution(kernel, x, stride, padding, dilation))

    x = max_pool(np.maximum(normed("bn1", "conv1", params, stats, images, 2), 0))
    for stage, blocks in enumerate(stages, 1):
        for block in range(blocks):
            name = f"layer{stage}_{block}"
            at, running = params[name], stats and stats[name]
            stride, dilation = (changed or {}).get(name, (2 if stage > 1 and block == 0 else 1, 1))
            y = np.maximum(normed("bn1", "conv1", at, running, x, 1), 0)
            y = np.maximum(normed("bn2", "conv2", at, running, y, stride, dilation), 0)
            y = normed("bn3", "conv3", at, running, y, 1)
            if block == 0:
                x = normed("downsample_bn", "downsample_conv", at, running, x, stride)
            x = np.maximum(x + y, 0)
    return x
