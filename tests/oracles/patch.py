"""iBOT's and DINO+'s patch losses and Barlow's batch relation with explicit loops in NumPy float64 (SPEC 1.6, 1.8)."""

from __future__ import annotations

import numpy as np

from tests.oracles.sere import log_softmax


def masked_loss(
    teacher: np.ndarray, student: np.ndarray, masks: np.ndarray, center: np.ndarray, t_teacher: float, t_student: float
) -> float:
    """Logits of all patches [b, v, n, k] and masks [b, v, n] -> the mean over b and v of each view's mean over its hidden patches.

    As the reference code has it: the sum over hidden patches, divided by their number or by 1 where there is none.
    """
    b, v, n, _ = teacher.shape
    total = 0.0
    for e in range(b):
        for q in range(v):
            over_patches = 0.0
            for i in range(n):
                target = np.exp(log_softmax((teacher[e, q, i] - center) / t_teacher))
                over_patches += float(masks[e, q, i]) * -(target * log_softmax(student[e, q, i] / t_student)).sum()
            total += over_patches / max(float(masks[e, q].sum()), 1.0)
    return total / (b * v)


def aligned_loss(
    teacher: np.ndarray, student: np.ndarray, overlaps: np.ndarray, center: np.ndarray, t_teacher: float, t_student: float
) -> float:
    """Logits at the same source points [b, 2, p, k]: teacher view i against student view j != i, over the pairs that overlap."""
    values = []
    for e in range(len(teacher)):
        for i, j in ((0, 1), (1, 0)):
            if overlaps[e]:
                for p in range(teacher.shape[2]):
                    target = np.exp(log_softmax((teacher[e, i, p] - center) / t_teacher))
                    values.append(-(target * log_softmax(student[e, j, p] / t_student)).sum())
    return float(np.mean(values)) if values else 0.0


def next_center(center: np.ndarray, logits: list[np.ndarray], momentum: float) -> np.ndarray:
    """momentum * center + (1 - momentum) * mean over a list of rows."""
    return momentum * center + (1 - momentum) * (np.mean(logits, axis=0) if logits else 0.0)


def barlow(first: np.ndarray, second: np.ndarray, off_diagonal: float) -> float:
    """Embeddings [b, d] of two views: sum_i (c_ii - 1)^2 + off_diagonal sum_{i != j} c_ij^2, c the correlation over the batch."""
    b, d = first.shape
    total = 0.0
    for i in range(d):
        for j in range(d):
            x, y = first[:, i].astype(np.float64), second[:, j].astype(np.float64)
            x, y = (x - x.mean()) / np.sqrt(x.var() + 1e-5), (y - y.mean()) / np.sqrt(y.var() + 1e-5)
            c = (x * y).sum() / b
            total += (c - 1) ** 2 if i == j else off_diagonal * c**2
    return total
