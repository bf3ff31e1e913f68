"""AdamW as a PyTorch training loop of DINO runs it, tensor by tensor in NumPy float64 (SPEC 1.5)."""

from __future__ import annotations

import numpy as np


def clip(gradient: np.ndarray, limit: float) -> np.ndarray:
    """limit / (norm + 1e-6) where that is below 1."""
    factor = limit / (np.sqrt((gradient.astype(np.float64) ** 2).sum()) + 1e-6)
    return gradient * factor if limit and factor < 1 else gradient


class AdamW:
    """One tensor's AdamW. A step with gradient None does nothing at all: no decay, no moments, no count."""

    def __init__(self, value: np.ndarray):
        self.value = value.astype(np.float64)
        self.first, self.second, self.count = np.zeros_like(self.value), np.zeros_like(self.value), 0

    def step(self, gradient: np.ndarray | None, *, lr: float, decay: float) -> None:
        """p <- p (1 - lr decay), then p <- p - lr m / (sqrt(v) + 1e-8) with bias-corrected moments."""
        if gradient is None:
            return
        self.count += 1
        self.value = self.value * (1 - lr * decay)
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient**2
        m, v = self.first / (1 - 0.9**self.count), self.second / (1 - 0.999**self.count)
        self.value = self.value - lr * m / (np.sqrt(v) + 1e-8)
