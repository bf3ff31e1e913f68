"""Matching, coding, sampling's limits, mask targets and losses of a detector as loops over boxes and pixels, in float64."""

from __future__ import annotations

import math

import numpy as np


def iou(a, b) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union else 0.0


def giou(a, b) -> float:
    union_share = iou(a, b)
    enclosing = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    union = both / (1 + union_share)
    return union_share - (enclosing - union) / enclosing


def assigned(boxes, objects, positive, negative, lowest=None) -> list[int]:
    """The object of each box; -1: background, -2: ignored."""
    answer = []
    for box in boxes:
        overlaps = [iou(box, one) for one in objects]
        best = max(overlaps, default=0.0)
        answer.append(overlaps.index(best) if best >= positive else -1 if best < negative else -2)
    if lowest is None:
        return answer
    for i, one in enumerate(objects):
        overlaps = [iou(box, one) for box in boxes]
        most = max(overlaps, default=0.0)
        if most >= lowest:
            for j, overlap in enumerate(overlaps):
                if overlap == most:
                    answer[j] = i
    return answer


def code(box, reference, deviations=(1, 1, 1, 1)) -> list[float]:
    width, height = reference[2] - reference[0], reference[3] - reference[1]
    shift_x = ((box[0] + box[2]) / 2 - (reference[0] + reference[2]) / 2) / width
    shift_y = ((box[1] + box[3]) / 2 - (reference[1] + reference[3]) / 2) / height
    growth = (math.log((box[2] - box[0]) / width), math.log((box[3] - box[1]) / height))
    return [value / deviation for value, deviation in zip((shift_x, shift_y, *growth), deviations, strict=True)]


def decoded(codes, reference, deviations=(1, 1, 1, 1)) -> list[float]:
    dx, dy, dw, dh = (value * deviation for value, deviation in zip(codes, deviations, strict=True))
    limit = math.log(1000 / 16)
    width, height = reference[2] - reference[0], reference[3] - reference[1]
    x, y = (reference[0] + reference[2]) / 2 + dx * width, (reference[1] + reference[3]) / 2 + dy * height
    width, height = width * math.exp(min(max(dw, -limit), limit)), height * math.exp(min(max(dh, -limit), limit))
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


def mask_target(mask, box, region, size) -> np.ndarray:
    """The mean of bilinear samples of a mask [m, m], drawn over `box` and 0 around it, in size x size cells of `region`; where >= 1/2."""
    m = len(mask)

    def cell(i: int, j: int) -> float:
        return float(mask[i][j]) if 0 <= i < m and 0 <= j < m else 0.0

    def value(y: float, x: float) -> float:
        i, j = math.floor(y), math.floor(x)
        dy, dx = y - i, x - j
        upper = (1 - dx) * cell(i, j) + dx * cell(i, j + 1)
        lower = (1 - dx) * cell(i + 1, j) + dx * cell(i + 1, j + 1)
        return (1 - dy) * upper + dy * lower

    across, down = m / (box[2] - box[0]), m / (box[3] - box[1])
    left, top = (region[0] - box[0]) * across - 0.5, (region[1] - box[1]) * down - 0.5
    width, height = (region[2] - region[0]) * across / size, (region[3] - region[1]) * down / size
    rows, columns = math.ceil(height), math.ceil(width)
    drawn = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            samples = [
                value(top + height * (i + (k + 0.5) / rows), left + width * (j + (n + 0.5) / columns))
                for k in range(rows)
                for n in range(columns)
            ]
            drawn[i, j] = sum(samples) / len(samples)
    return drawn


def bce(logit: float, target: bool) -> float:
    probability = 1 / (1 + math.exp(-logit))
    return -math.log(probability if target else 1 - probability)


def smooth_l1(error: float, beta: float) -> float:
    error = abs(error)
    return error**2 / (2 * beta) if error < beta else error - beta / 2


def cross_entropy(logits, label: int) -> float:
    return math.log(sum(math.exp(logit) for logit in logits)) - logits[label]
