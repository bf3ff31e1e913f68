"""Schedules as arrays with one entry a step, laid out as the reference code does (SPEC 1.5, 1.6)."""

from __future__ import annotations

import numpy as np


def learning_rate(peak: float, end: float, warmup_steps: int, steps: int) -> np.ndarray:
    """linspace(0, peak, warm-up) followed by a cosine over the rest."""
    return np.concatenate([np.linspace(0, peak, warmup_steps), cosine(peak, end, steps - warmup_steps)])


def cosine(start: float, end: float, steps: int) -> np.ndarray:
    """The height of a point that goes half around a circle: at angle 0 it is `start`, at angle pi, after the last step, `end`."""
    half_turn = np.exp(1j * np.linspace(0, np.pi, steps + 1)[:-1])
    return (start + end) / 2 + half_turn.real * (start - end) / 2


def teacher_temperature(warm: float, final: float, warmup_epochs: int, epochs: int) -> np.ndarray:
    """One entry an epoch."""
    return np.concatenate([np.linspace(warm, final, warmup_epochs), np.full(epochs - warmup_epochs, final)])
