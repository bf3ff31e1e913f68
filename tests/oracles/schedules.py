"""Schedules as arrays with one entry a step, laid out as the reference code does (SPEC 1.5, 1.6)."""

from __future__ import annotations

import numpy as np


def learning_rate(peak: float, end: float, warmup_steps: int, steps: int) -> np.ndarray:
    """linspace(0, peak, warm-up) followed by a cosine over the rest."""
    i = np.arange(steps - warmup_steps)
    decay = end + 0.5 * (peak - end) * (1 + np.cos(np.pi * i / len(i)))
    return np.concatenate([np.linspace(0, peak, warmup_steps), decay])


def cosine(start: float, end: float, steps: int) -> np.ndarray:
    """A cosine over all steps."""
    i = np.arange(steps)
    return end + 0.5 * (start - end) * (1 + np.cos(np.pi * i / steps))


def teacher_temperature(warm: float, final: float, warmup_epochs: int, epochs: int) -> np.ndarray:
    """One entry an epoch."""
    return np.concatenate([np.linspace(warm, final, warmup_epochs), np.full(epochs - warmup_epochs, final)])
