"""The training loop of DINO, iBOT and SERE in PyTorch (SPEC 1.5): clip, AdamW, its groups, schedules, last-layer freeze, EMA, centers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from tests.oracles.torch_heads import Network
from tests.oracles.torch_sere import IMAGE, Batch, Method, Rules


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
    teacher_temps: dict[str, tuple[float, float]]  # by image loss: at the start and after the warm-up
    warmup_teacher_temp_epochs: int
    center_momentum: dict[str, float]
    parts: int = 1

    def lr(self, i: int) -> float:
        """Laid out over micro-batches, and read at the first of a step."""
        i, warmup, total = i * self.parts, self.warmup * self.parts, self.total * self.parts
        ramp = torch.linspace(0, self.peak_lr, warmup, dtype=torch.float64).tolist()
        return ramp[i] if i < warmup else cosine(self.peak_lr, self.min_lr, i - warmup, total - warmup)

    def temps(self, i: int) -> dict[str, float]:
        """Of the teacher, by image loss."""
        epoch, warmup, found = i // self.per_epoch, self.warmup_teacher_temp_epochs, {}
        for name, (start, end) in self.teacher_temps.items():
            found[name] = torch.linspace(start, end, warmup, dtype=torch.float64)[epoch].item() if epoch < warmup else end
        return found


def cosine(start: float, end: float, i: int, n: int) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * i / n)) / 2


class Trainer:
    """Student, teacher, their optimiser and the centers; `step(batch)` is one update of the global batch."""

    def __init__(self, rules: Rules, training: Training, student: Network, teacher: Network, prototypes: int):
        self.rules, self.training, self.student, self.teacher = rules, training, student, teacher
        for parameter in teacher.parameters():
            parameter.requires_grad = False
        self.method = Method(rules, student, teacher)
        self.centers = {name: next(student.parameters()).new_zeros(1, prototypes) for name in rules.losses if name in IMAGE}
        trained = [(name, p) for name, p in student.named_parameters() if p.requires_grad]
        decayed = [p for name, p in trained if p.ndim > 1 or (training.decay_bias and name.endswith(".bias"))]
        exempt = [p for name, p in trained if not (p.ndim > 1 or (training.decay_bias and name.endswith(".bias")))]
        self.optimizer = torch.optim.AdamW([{"params": decayed}, {"params": exempt, "weight_decay": 0.0}], lr=0.0)
        self.done = 0

    def step(self, batch: Batch) -> dict[str, float]:
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
            terms, mean = self.method(batch.part(j, parts), self.centers, t.temps(self.done))
            (terms["loss"] / parts).backward()
            metrics = {name: metrics.get(name, 0.0) + value.item() / parts for name, value in terms.items()}
            means.append(mean)
        self.clip()
        if self.done < t.freeze:
            for name, parameter in self.student.named_parameters():
                if "last_layer" in name:
                    parameter.grad = None
        self.optimizer.step()
        self.follow(cosine(t.momentum, t.momentum_end, self.done, t.total))
        for name, center in self.centers.items():
            mean = sum(part[name] for part in means) / parts
            self.centers[name] = t.center_momentum[name] * center + (1 - t.center_momentum[name]) * mean
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
