"""The residual network of bottleneck blocks in PyTorch, with torchvision's names for its tensors (He et al. 2016).

The stride stands in a block's 3 x 3 convolution; the shortcut is projected in the first block of each stage.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, inner: int, stride: int, project: bool):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, 4 * inner, 1, bias=False), nn.BatchNorm2d(4 * inner)
        if project:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, 4 * inner, 1, stride, bias=False), nn.BatchNorm2d(4 * inner))
        self.project = project

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + (self.downsample(x) if self.project else x))


class ResNet(nn.Module):
    """Images [b, 3, H, W] -> the last map [b, d, h, w]; a classifier `fc` is there for its names alone."""

    def __init__(self, stages: tuple[int, ...], width: int, classes: int = 0):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        inputs = width
        for i, blocks in enumerate(stages):
            inner = width * 2**i
            first = Bottleneck(inputs, inner, 2 if i else 1, project=True)
            inputs = 4 * inner
            self.add_module(f"layer{i + 1}", nn.Sequential(first, *(Bottleneck(inputs, inner, 1, False) for _ in range(blocks - 1))))
        if classes:
            self.fc = nn.Linear(inputs, classes)
        self.stages = len(stages)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(images))), 3, 2, 1)
        for i in range(self.stages):
            x = getattr(self, f"layer{i + 1}")(x)
        return x


def unsettle(network: nn.Module, side: int, seed: int = 0) -> nn.Module:
    """Draw what a fresh network has at 0 and 1, so that a mix-up shows: BatchNorm's scales and biases. Running statistics are those
    of a batch of noise, `side` pixels wide: any others would let the residual sums grow without limit.
    """
    drawn = torch.Generator().manual_seed(seed)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.momentum = 1.0
            norm.bias.copy_(0.1 * torch.randn(norm.bias.shape, generator=drawn))
            norm.weight.copy_((0.2 * torch.randn(norm.weight.shape, generator=drawn)).exp())
        network.train()(torch.randn((4, 3, side, side), generator=drawn))
    return network.eval()
