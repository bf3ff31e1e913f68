"""DINO's prototype head, SERE's relation heads and the network that carries them, in PyTorch (SPEC 1.2 and 1.6)."""

from __future__ import annotations

import itertools

import torch
from torch import nn
from torch.nn import functional as F

from tests.oracles.torch_vit import Stages, ViT


class LastLayer(nn.Module):
    """Rows g v / |v|; g is a parameter that is trained unless `norm` fixes it."""

    def __init__(self, inputs: int, prototypes: int, norm: bool):
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(prototypes, 1), requires_grad=not norm)
        self.weight_v = nn.Parameter(torch.zeros(prototypes, inputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight_g * self.weight_v / self.weight_v.norm(dim=1, keepdim=True))


class PrototypeHead(nn.Module):
    """Tokens [..., d] -> logits [..., K]; the tensors have the names of DINO's checkpoints."""

    def __init__(self, width: int, hidden: int, bottleneck: int, layers: int, prototypes: int, norm_last_layer: bool):
        super().__init__()
        widths, parts = [width, *[hidden] * (layers - 1), bottleneck], []
        for a, b in itertools.pairwise(widths):
            parts += [nn.Linear(a, b), nn.GELU()]
        self.mlp = nn.Sequential(*parts[:-1])
        self.last_layer = LastLayer(bottleneck, prototypes, norm_last_layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last_layer(F.normalize(self.mlp(x), dim=-1, eps=1e-12))


class RelationHead(nn.Module):
    """Maps [b, d, h, w] -> z = ReLU(BN(x)), and p = ReLU(BN(conv(z))), which only the student's loss sees; always in training mode."""

    def __init__(self, d: int, symmetric: bool = False):
        super().__init__()
        self.symmetric = symmetric
        self.bn = nn.BatchNorm2d(d)
        if not symmetric:
            self.predictor, self.predictor_bn = nn.Conv2d(d, d, 1, bias=False), nn.BatchNorm2d(d)

    def forward(self, x: torch.Tensor, student: bool) -> torch.Tensor:
        z = F.relu(self.bn(x))
        p = z if self.symmetric else F.relu(self.predictor_bn(self.predictor(z)))
        return p if student else z


class Network(nn.Module):
    """A student or a teacher: backbone, DINO head (None where the method has no image loss), relation heads by name."""

    def __init__(self, backbone: ViT, head: PrototypeHead | None, relations: dict[str, RelationHead]):
        super().__init__()
        self.backbone, self.relations = backbone, nn.ModuleDict(relations)
        if head is not None:
            self.head = head

    def stages(self, crops: torch.Tensor, masks: torch.Tensor | None = None) -> Stages:
        """Crops [b, v, c, H, W]; both views in one batch, so that BatchNorm's statistics are those of both. Rows are (b v)."""
        return self.backbone(crops.flatten(0, 1), None if masks is None else masks.flatten(0, 1))

    def relation(self, name: str, stages: Stages, views: int, norm: str, student: bool) -> torch.Tensor:
        """Features of a relation head, [b, v, d, h, w], from the patch tokens before or after the final norm."""
        tokens = stages.prenorm if norm == "pre" else stages.patches.transpose(1, 2).reshape(stages.prenorm.shape)
        return self.relations[name](tokens, student).unflatten(0, (-1, views))

    def logits(self, stages: Stages, views: int) -> torch.Tensor:
        """Prototype logits of the cls tokens, [b, v, K]."""
        return self.head(stages.cls).unflatten(0, (-1, views))

    def patch_logits(self, stages: Stages, views: int) -> torch.Tensor:
        """The same head on the patch tokens, [b, v, h w, K] (iBOT's shared head)."""
        return self.head(stages.patches).unflatten(0, (-1, views))
