"""MoCo v3's loss and head, and LARS, one number after the other in NumPy float64 (SPEC 1.7)."""

from __future__ import annotations

import math

import numpy as np

from tests.oracles.vit import batch_norm, linear


def info_nce(queries: np.ndarray, keys: np.ndarray, temperature: float) -> float:
    """Mean cross-entropy of finding one's own key among all, by cosine."""
    losses = []
    for i, q in enumerate(queries):
        scores = [float(q @ k) / (np.linalg.norm(q) * np.linalg.norm(k)) / temperature for k in keys]
        losses.append(math.log(sum(math.exp(s) for s in scores)) - scores[i])
    return sum(losses) / len(losses)


def mocov3(queries: np.ndarray, keys: np.ndarray, temperature: float) -> float:
    """[b, 2, e] each: the first view's queries against the second's keys and the other way round, each times 2 T."""
    one, other = info_nce(queries[:, 0], keys[:, 1], temperature), info_nce(queries[:, 1], keys[:, 0], temperature)
    return 2 * temperature * one + 2 * temperature * other


def mlp(params: dict, x: np.ndarray, *, last_norm: bool) -> np.ndarray:
    """Linear, BatchNorm, ReLU, ..., linear, and a BatchNorm without scale and bias or nothing. x [b, d] is one view."""
    count = sum(name.startswith("mlp_") for name in params)
    for i in range(count):
        x = linear(params[f"mlp_{i}"], x)
        if i < count - 1:
            x = np.maximum(batch_norm(params[f"bn_{i}"], x), 0)
        elif last_norm:
            x = batch_norm({"scale": np.ones(x.shape[1]), "bias": np.zeros(x.shape[1])}, x)
    return x


class Lars:
    """One tensor's LARS; decay and trust ratio only for tensors of two or more dimensions."""

    def __init__(self, value: np.ndarray, *, trust: float = 1e-3, momentum: float = 0.9):
        self.value, self.trust, self.momentum = value.astype(np.float64), trust, momentum
        self.moment = np.zeros_like(self.value)

    def step(self, gradient: np.ndarray, *, lr: float, decay: float) -> None:
        """u = g + wd p; u <- u trust |p| / |u|; m <- momentum m + u; p <- p - lr m."""
        update = gradient.astype(np.float64)
        if update.ndim > 1:
            update = update + decay * self.value
            size, length = np.linalg.norm(self.value.ravel()), np.linalg.norm(update.ravel())
            if size > 0 and length > 0:
                update = update * self.trust * size / length
        self.moment = self.momentum * self.moment + update
        self.value = self.value - lr * self.moment


class Sgd:
    """One tensor's SGD as PyTorch runs it. A step with gradient None does nothing at all."""

    def __init__(self, value: np.ndarray, *, momentum: float = 0.9):
        self.value, self.momentum = value.astype(np.float64), momentum
        self.moment = np.zeros_like(self.value)

    def step(self, gradient: np.ndarray | None, *, lr: float, decay: float) -> None:
        """m <- momentum m + g + wd p; p <- p - lr m."""
        if gradient is None:
            return
        self.moment = self.momentum * self.moment + gradient + decay * self.value
        self.value = self.value - lr * self.moment
