"""The training loop of DINO + SERE in PyTorch: clip, AdamW with its groups and schedules, last-layer freeze, EMA, center (SPEC 1.5)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from tests.oracles.torch_heads import Network
from tests.oracles.torch_sere import Method, Rules


@dataclass(frozen=True)
class Training:
    """The optimiser's rules. Lengths are in steps; an epoch has `per_epoch`."""

    per_epoch: int
    total: int
    peak_lr: float
    min_lr: float
    warmup: int
    weight_decay: float
    weight_decay_end: float
    clip: float
    freeze: int
    decay_bias: bool
    momentum: float
    momentum_end: float
    teacher_temp: float
    warmup_teacher_temp: float
    warmup_teacher_temp_epochs: int
    center_momentum: float
    parts: int = 1

    def lr(self, i: int) -> float:
        """Laid out over micro-batches, and read at the first of a step."""
        i, warmup, total = i * self.parts, self.warmup * self.parts, self.total * self.parts
        ramp = torch.linspace(0, self.peak_lr, warmup, dtype=torch.float64).tolist()
        return ramp[i] if i < warmup else cosine(self.peak_lr, self.min_lr, i - warmup, total - warmup)

    def temp(self, i: int) -> float:
        ramp = torch.linspace(self.warmup_teacher_temp, self.teacher_temp, self.warmup_teacher_temp_epochs, dtype=torch.float64).tolist()
        epoch = i // self.per_epoch
        return ramp[epoch] if epoch < len(ramp) else self.teacher_temp


def cosine(start: float, end: float, i: int, n: int) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * i / n)) / 2


class Trainer:
    """Student, teacher, their optimiser and the center; `step(crops, boxes, flips)` is one update of the global batch."""

    def __init__(self, rules: Rules, training: Training, student: Network, teacher: Network, prototypes: int):
        self.rules, self.training, self.student, self.teacher = rules, training, student, teacher
        for parameter in teacher.parameters():
            parameter.requires_grad = False
        self.method = Method(rules, student, teacher)
        self.center = next(student.parameters()).new_zeros(1, prototypes)
        trained = [(name, p) for name, p in student.named_parameters() if p.requires_grad]
        decayed = [p for name, p in trained if p.ndim > 1 or (training.decay_bias and name.endswith(".bias"))]
        exempt = [p for name, p in trained if not (p.ndim > 1 or (training.decay_bias and name.endswith(".bias")))]
        self.optimizer = torch.optim.AdamW([{"params": decayed}, {"params": exempt, "weight_decay": 0.0}], lr=0.0)
        self.done = 0

    def step(self, crops, boxes, flips) -> dict[str, float]:
        """Micro-batch j of `parts` holds the rows j, j + parts, ...; metrics are their means."""
        t, parts = self.training, self.training.parts
        for group, decay in zip(
            self.optimizer.param_groups, (cosine(t.weight_decay, t.weight_decay_end, self.done, t.total), 0.0), strict=True
        ):
            group["lr"], group["weight_decay"] = t.lr(self.done), decay
        self.optimizer.zero_grad(set_to_none=True)
        metrics: dict[str, float] = {}
        means = []
        for j in range(parts):
            terms, mean = self.method([x[j::parts] for x in crops], boxes[j::parts], flips[j::parts], self.center, t.temp(self.done))
            (terms["loss"] / parts).backward()
            metrics = {name: metrics.get(name, 0.0) + value.item() / parts for name, value in terms.items()}
            means += [] if mean is None else [mean]
        self.clip()
        if self.done < t.freeze:
            for name, parameter in self.student.named_parameters():
                if "last_layer" in name:
                    parameter.grad = None
        self.optimizer.step()
        self.follow(cosine(t.momentum, t.momentum_end, self.done, t.total))
        if means:
            self.center = t.center_momentum * self.center + (1 - t.center_momentum) * torch.stack(means).mean(0)
        self.done += 1
        return metrics

    def clip(self) -> None:
        """Each tensor by its own norm."""
        for parameter in self.student.parameters():
            if self.training.clip and parameter.grad is not None:
                parameter.grad *= min(1.0, self.training.clip / (parameter.grad.norm().item() + 1e-6))

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """The teacher's parameters, not its BatchNorms' running statistics, follow the student's."""
        for mine, theirs in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            mine.mul_(momentum).add_((1 - momentum) * theirs)
