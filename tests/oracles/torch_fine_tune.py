"""MAE's fine-tuning of a ViT in PyTorch (SPEC 2.1): mean of patches, `fc_norm`, head, AdamW with layer-wise decay, rate by step."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from tests.oracles.torch_vit import ViT


class Classifier(nn.Module):
    def __init__(self, backbone: ViT, width: int, classes: int):
        super().__init__()
        self.backbone, self.fc_norm, self.head = backbone, nn.LayerNorm(width, eps=1e-6), nn.Linear(width, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.fc_norm(self.backbone(images).prenorm.mean((2, 3))))


def layer(name: str, depth: int) -> int:
    if name.startswith(("backbone.cls_token", "backbone.pos_embed", "backbone.patch_embed")):
        return 0
    return int(name.split(".")[2]) + 1 if name.startswith("backbone.blocks.") else depth + 1


class Trainer:
    """`step(images, labels)` is one update; it returns the loss before it."""

    def __init__(
        self, model: Classifier, *, depth: int, decay: float, weight_decay: float, peak: float, low: float, warmup: int, total: int
    ):
        self.model, self.done = model, 0
        self.peak, self.low, self.warmup, self.total = peak, low, warmup, total
        groups = []
        for name, parameter in model.named_parameters():
            exempt = parameter.ndim == 1 or name.endswith(("pos_embed", "cls_token"))
            scale = decay ** (depth + 1 - layer(name, depth))
            groups.append({"params": [parameter], "weight_decay": 0.0 if exempt else weight_decay, "scale": scale})
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999))

    def rate(self) -> float:
        if self.done < self.warmup:
            return self.peak * self.done / self.warmup
        passed = (self.done - self.warmup) / (self.total - self.warmup)
        return self.low + (self.peak - self.low) * (1 + math.cos(math.pi * passed)) / 2

    def step(self, images: torch.Tensor, labels: torch.Tensor, smoothing: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate() * group["scale"]
        self.optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(self.model(images), labels, label_smoothing=smoothing)
        loss.backward()
        self.optimizer.step()
        self.done += 1
        return loss.item()
