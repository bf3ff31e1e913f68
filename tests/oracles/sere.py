"""SERE's losses as the released code computes them: relations of whole maps, then sampled along keys and along queries."""

from __future__ import annotations

import math

import numpy as np

from tests.oracles.geometry import interpolation_matrix, overlap_grids


def log_softmax(row: np.ndarray) -> np.ndarray:
    """Log-softmax of one row in float64."""
    row = np.asarray(row, np.float64)
    row = row - row.max()
    return row - math.log(np.exp(row).sum())


def relation_cross_entropy(teacher: np.ndarray, student: np.ndarray, t_teacher: float, t_student: float) -> float:
    """-sum softmax(teacher / t) log_softmax(student / t') over each last axis, averaged over all rows."""
    width = teacher.shape[-1]
    rows = zip(teacher.reshape(-1, width), student.reshape(-1, width), strict=True)
    return float(np.mean([-(np.exp(log_softmax(t / t_teacher)) * log_softmax(s / t_student)).sum() for t, s in rows]))


def spatial_relation(feature_map: np.ndarray, heads: int, scale: str = "head") -> np.ndarray:
    """feature_map [h, w, d] -> [heads, h w, h w]: inner products within each head's d / heads channels."""
    tokens = feature_map.reshape(-1, feature_map.shape[-1]).astype(np.float64)
    n, d = tokens.shape
    part = d // heads
    out = np.zeros((heads, n, n))
    for m in range(heads):
        for q in range(n):
            for k in range(n):
                out[m, q, k] = tokens[q, m * part : (m + 1) * part] @ tokens[k, m * part : (m + 1) * part]
    return out / math.sqrt(part if scale == "head" else d)


def channel_relation(feature_map: np.ndarray) -> np.ndarray:
    """feature_map [h, w, d] -> [d, d]: inner products of channels over positions, over their number."""
    tokens = feature_map.reshape(-1, feature_map.shape[-1]).astype(np.float64)
    n, d = tokens.shape
    return np.array([[tokens[:, i] @ tokens[:, j] / n for j in range(d)] for i in range(d)])


def sampled_relation(relation: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """relation [m, n, n] sampled along its keys, then along its queries."""
    keys = np.stack([np.stack([matrix @ query for query in head]) for head in relation])
    return np.stack([np.stack([matrix @ key for key in head.T]).T for head in keys])


def spatial_terms(
    teacher: np.ndarray,
    student: np.ndarray,
    local: np.ndarray | None,
    boxes: np.ndarray,
    flips: np.ndarray,
    *,
    heads: int,
    t_teacher: float = 0.5,
    t_student: float = 1.0,
    scale: str = "head",
    sampling: str = "endpoints",
    padding: str = "zeros",
    disjoint: str = "count",
    global_points: int = 13,
    local_points: int = 6,
) -> tuple[list[float], list[float]]:
    """Per-term means: (global terms, local terms). Maps are [b, v, h, w, d], boxes [b, n, 4] with global crops first."""

    def term(i: int, of: np.ndarray, j: int, view: int, size: int) -> float:
        values = []
        for e in range(len(teacher)):
            grids = overlap_grids(boxes[e, i], flips[e, i], boxes[e, view], flips[e, view], size, sampling)
            if disjoint == "skip" and grids[0][0, 0, 0] == -2:
                continue
            both = []
            for feature_map, grid in ((teacher[e, i], grids[0]), (of[e, j], grids[1])):
                matrix = interpolation_matrix(*feature_map.shape[:2], grid, padding)
                both.append(sampled_relation(spatial_relation(feature_map, heads, scale), matrix))
            values.append(relation_cross_entropy(*both, t_teacher, t_student))
        return float(np.mean(values)) if values else 0.0

    global_terms = [term(i, student, 1 - i, 1 - i, global_points) for i in (0, 1)]
    count = 0 if local is None else local.shape[1]
    return global_terms, [term(i, local, j, 2 + j, local_points) for i in (0, 1) for j in range(count)]


def channel_terms(
    teacher: np.ndarray, student: np.ndarray, local: np.ndarray | None, *, t_teacher: float = 0.1, t_student: float = 1.0
) -> tuple[list[float], list[float]]:
    """Per-term means: (global terms, local terms)."""

    def term(i: int, of: np.ndarray, j: int) -> float:
        pairs = [(channel_relation(teacher[e, i]), channel_relation(of[e, j])) for e in range(len(teacher))]
        return float(np.mean([relation_cross_entropy(t, s, t_teacher, t_student) for t, s in pairs]))

    count = 0 if local is None else local.shape[1]
    return [term(i, student, 1 - i) for i in (0, 1)], [term(i, local, j) for i in (0, 1) for j in range(count)]
