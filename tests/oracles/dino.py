"""DINO's loss, center and prototype head with explicit loops in NumPy float64 (SPEC 1.6)."""

from __future__ import annotations

import math

import numpy as np

from tests.oracles.sere import log_softmax
from tests.oracles.vit import gelu, linear


def loss_terms(teacher: np.ndarray, student: np.ndarray, center: np.ndarray, t_teacher: float, t_student: float) -> list[float]:
    """teacher logits [b, 2, k], student logits [b, 2 + l, k] -> one batch mean a pair (teacher view q, student view v != q)."""
    terms = []
    for q in range(teacher.shape[1]):
        for v in range(student.shape[1]):
            if v == q:
                continue
            values = []
            for e in range(teacher.shape[0]):
                target = np.exp(log_softmax((teacher[e, q] - center) / t_teacher))
                values.append(-(target * log_softmax(student[e, v] / t_student)).sum())
            terms.append(float(np.mean(values)))
    return terms


def next_center(center: np.ndarray, teacher: np.ndarray, momentum: float) -> np.ndarray:
    """momentum * center + (1 - momentum) * mean of the teacher's logits over batch and views."""
    k = teacher.shape[-1]
    rows = teacher.reshape(-1, k)
    return np.array([momentum * center[i] + (1 - momentum) * sum(row[i] for row in rows) / len(rows) for i in range(k)])


def head(params: dict, tokens: np.ndarray) -> np.ndarray:
    """tokens [n, d] -> logits [n, k]: linear + GELU, ..., linear, L2 normalisation, weight-normalised prototypes."""
    layers = sorted(name for name in params if name.startswith("mlp_"))
    x = tokens.astype(np.float64)
    for name in layers:
        x = linear(params[name], x)
        if name != layers[-1]:
            x = gelu(x)
    last = params["last_layer"]
    out = np.zeros((len(x), len(last["direction"])))
    for i, row in enumerate(x):
        unit = row / max(math.sqrt((row**2).sum()), 1e-12)
        for k, v in enumerate(last["direction"].astype(np.float64)):
            g = float(last["scale"][k, 0]) if "scale" in last else 1.0
            out[i, k] = unit @ (g * v / math.sqrt((v**2).sum()))
    return out
