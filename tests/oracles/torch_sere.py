"""The losses of DINO, iBOT and SERE in PyTorch, term by term, with `grid_sample` on the relation tensors themselves (SPEC 1.3 to 1.6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn import functional as F

from tests.oracles.torch_heads import Network
from tests.oracles.torch_vit import Stages

TEACHER_VIEWS = 2
IMAGE = ("dino", "patch")

Terms = dict[str, torch.Tensor]


class Batch(NamedTuple):
    """Normalised crops, the boxes (left, top, width, height) and mirrorings of all, global ones first, and iBOT's masks."""

    large: torch.Tensor  # [b, 2, c, H, W]
    small: torch.Tensor  # [b, l, c, S, S]
    boxes: list[list[list[float]]]
    flips: list[list[bool]]
    masks: torch.Tensor | None = None  # [b, 2, h, w], True: hidden from the student

    def part(self, j: int, parts: int) -> Batch:
        """The rows j, j + parts, ..."""
        return Batch(*(None if x is None else x[j::parts] for x in self))


@dataclass(frozen=True)
class Rules:
    """The method: its losses, and the readings of it where code and paper differ (first choice: the code's)."""

    losses: tuple[str, ...] = ("dino", "spatial", "channel")
    alpha: float = 1.0
    beta: float = 1.0
    image_weight: str = "code"
    teacher_temp_spatial: float = 0.5
    teacher_temp_channel: float = 0.1
    student_temp_relation: float = 1.0
    temperature_side: str = "teacher"
    sampling: str = "endpoints"
    padding: str = "zeros"
    disjoint: str = "count"
    scale: str = "head"
    heads: int = 6
    tokens: str = "pre"
    local_heads: str = "separate"
    student_tokens: str = "masked"
    global_points: int = 13
    local_points: int = 6
    student_temp: float = 0.1

    def temperatures(self, sharp: float) -> tuple[float, float]:
        """The teacher's and the student's."""
        pair = (sharp, self.student_temp_relation)
        return pair if self.temperature_side == "teacher" else pair[::-1]

    def weight(self, loss: str) -> float:
        if loss not in IMAGE:
            return {"spatial": self.alpha, "channel": self.beta}[loss]
        if self.image_weight != "code":
            return 1.0
        if "spatial" in self.losses and "channel" in self.losses:
            return (4 - self.alpha - self.beta) / 2  # as released
        if "spatial" in self.losses:
            return (3 - self.alpha) / 2
        return (3 - self.beta) / 2 if "channel" in self.losses else 1.0


def overlap_grid(box, flip, other, size: int, sampling: str) -> torch.Tensor | None:
    """Where view `box` (left, top, width, height, mirrored by `flip`) sees size^2 points of its overlap with box `other`.

    [size, size, 2] of (x, y) for `grid_sample`; None where the boxes share no area.
    """
    spans = []
    for axis in (0, 1):
        low = max(box[axis], other[axis])
        high = min(box[axis] + box[2 + axis], other[axis] + other[2 + axis])
        if high <= low:
            return None
        steps = torch.linspace(0, 1, size, dtype=torch.float64)
        if sampling == "centers":
            steps = (torch.arange(size, dtype=torch.float64) + 0.5) / size
        spans.append((low + (high - low) * steps - box[axis]) / box[2 + axis])
    x, y = 2 * spans[0] - 1, 2 * spans[1] - 1
    x = -x if flip else x
    return torch.stack([x.expand(size, size), y[:, None].expand(size, size)], -1)


def sampled_relation(relation: torch.Tensor, grid: torch.Tensor | None, h: int, w: int, padding: str, size: int) -> torch.Tensor:
    """[m, h w, h w] -> [m, size^2, size^2]: the keys are sampled, then the queries. Without overlap all is 0."""
    if grid is None:
        return relation.new_zeros(len(relation), size * size, size * size)

    def last_axis(r: torch.Tensor) -> torch.Tensor:
        maps = r.unflatten(-1, (h, w))
        return F.grid_sample(maps, grid.to(r).expand(len(r), -1, -1, -1), "bilinear", padding, align_corners=False).flatten(-2)

    return last_axis(last_axis(relation).transpose(-1, -2)).transpose(-1, -2)


def spatial_relation(features: torch.Tensor, heads: int, scale: str) -> torch.Tensor:
    """[d, h, w] -> [m, h w, h w]."""
    d = len(features)
    grouped = features.reshape(heads, d // heads, -1).transpose(1, 2)
    return grouped @ grouped.transpose(1, 2) / (d // heads if scale == "head" else d) ** 0.5


def channel_relation(features: torch.Tensor) -> torch.Tensor:
    """[d, h, w] -> [d, d]."""
    flat = features.flatten(1) / features[0].numel() ** 0.5
    return flat @ flat.T


def cross_entropy(teacher: torch.Tensor, student: torch.Tensor, temperatures: tuple[float, float]) -> torch.Tensor:
    targets = (teacher.detach() / temperatures[0]).softmax(-1)
    return -(targets * (student / temperatures[1]).log_softmax(-1)).sum(-1).mean()


def spatial_term(
    teacher: torch.Tensor, student: torch.Tensor, batch: Batch, pair: tuple[int, int], size: int, rules: Rules
) -> torch.Tensor:
    """One pair of crops `pair` (numbers among all crops); teacher's and student's features of it, [b, d, h, w]."""
    i, j = pair
    found = []
    for e, (boxes, flips) in enumerate(zip(batch.boxes, batch.flips, strict=True)):
        grids = [
            overlap_grid(boxes[i], flips[i], boxes[j], size, rules.sampling),
            overlap_grid(boxes[j], flips[j], boxes[i], size, rules.sampling),
        ]
        if grids[0] is None and rules.disjoint == "skip":
            continue
        relations = [
            sampled_relation(spatial_relation(x[e], rules.heads, rules.scale), grid, *x.shape[-2:], rules.padding, size)
            for x, grid in zip((teacher, student), grids, strict=True)
        ]
        found.append(cross_entropy(*relations, rules.temperatures(rules.teacher_temp_spatial)))
    return torch.stack(found).mean() if found else student.new_zeros(())


def channel_term(teacher: torch.Tensor, student: torch.Tensor, rules: Rules) -> torch.Tensor:
    temperatures = rules.temperatures(rules.teacher_temp_channel)
    pairs = zip(teacher, student, strict=True)
    return torch.stack([cross_entropy(channel_relation(t), channel_relation(s), temperatures) for t, s in pairs]).mean()


def pairs(count: int) -> list[tuple[int, int]]:
    """All (teacher's global crop, student's other crop), of `count` crops."""
    return [(i, j) for i in range(TEACHER_VIEWS) for j in range(count) if i != j]


class Method:
    """student, teacher, views -> every term, the total, and the teacher's mean logits by center."""

    def __init__(self, rules: Rules, student: Network, teacher: Network):
        self.rules, self.student, self.teacher = rules, student, teacher

    def __call__(self, batch: Batch, centers: Mapping[str, torch.Tensor], temps: Mapping[str, float]) -> tuple[Terms, Terms]:
        locals_ = batch.small.shape[1]
        with torch.no_grad():
            of_teacher = self.teacher.stages(batch.large)
        of_student = {"global": self.student.stages(batch.large, batch.masks)}
        if batch.masks is not None and self.rules.student_tokens == "unmasked":
            of_student["whole"] = self.student.stages(batch.large)
        if locals_:
            of_student["local"] = self.student.stages(batch.small)
        terms: Terms = {}
        means: Terms = {}
        if "dino" in self.rules.losses:
            with torch.no_grad():
                teacher = self.teacher.logits(of_teacher, 2)
            students = [self.student.logits(of_student["global"], 2)]
            students += [self.student.logits(of_student["local"], locals_)] if locals_ else []
            terms["dino"] = self.dino(self.targets(teacher, centers["dino"], temps["dino"]), torch.cat(students, 1))
            means["dino"] = teacher.mean((0, 1))
        if "patch" in self.rules.losses:
            with torch.no_grad():
                teacher = self.teacher.patch_logits(of_teacher, 2)
            student = self.student.patch_logits(of_student["global"], 2)
            terms["patch"] = self.patch(self.targets(teacher, centers["patch"], temps["patch"]), student, batch.masks)
            means["patch"] = teacher.mean((0, 1, 2))
        for name in ("spatial", "channel"):
            if name in self.rules.losses:
                terms |= self.relation(name, of_teacher, of_student, batch)
        terms["loss"] = sum(self.rules.weight(name) * terms[name] for name in self.rules.losses)
        return terms, means

    def targets(self, logits: torch.Tensor, center: torch.Tensor, temp: float) -> torch.Tensor:
        return ((logits - center) / temp).softmax(-1)

    def dino(self, targets: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
        logs = (student / self.rules.student_temp).log_softmax(-1)
        return torch.stack([-(targets[:, i] * logs[:, j]).sum(-1).mean() for i, j in pairs(student.shape[1])]).mean()

    def patch(self, targets: torch.Tensor, student: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """iBOT: the mean over a view's hidden patches, of the same view; a view without any counts as 0."""
        tokens = -(targets * (student / self.rules.student_temp).log_softmax(-1)).sum(-1)
        hidden = masks.flatten(2)
        return ((tokens * hidden).sum(-1) / hidden.sum(-1).clamp(min=1)).mean()

    def relation(self, name: str, of_teacher: Stages, of_student: Mapping[str, Stages], batch: Batch) -> Terms:
        rules, locals_ = self.rules, batch.small.shape[1]
        with torch.no_grad():
            teacher = self.teacher.relation(name, of_teacher, 2, rules.tokens, student=False)
        large = of_student.get("whole", of_student["global"])
        students = list(self.student.relation(name, large, 2, rules.tokens, student=True).unbind(1))
        if locals_:
            head = name if rules.local_heads == "shared" else f"{name}_local"
            students += self.student.relation(head, of_student["local"], locals_, rules.tokens, student=True).unbind(1)
        found: dict[str, list[torch.Tensor]] = {"global": [], "local": []}
        for i, j in pairs(2 + locals_):
            size = rules.global_points if j < 2 else rules.local_points
            if name == "spatial":
                term = spatial_term(teacher[:, i], students[j], batch, (i, j), size, rules)
            else:
                term = channel_term(teacher[:, i], students[j], rules)
            found["global" if j < 2 else "local"].append(term)
        terms = {f"{name}_{kind}": torch.stack(each).mean() for kind, each in found.items() if each}
        return terms | {name: torch.stack(found["global"] + found["local"]).mean()}
