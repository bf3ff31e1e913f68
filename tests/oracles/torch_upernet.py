"""UperNet on a ViT and its training in PyTorch (SPEC 3.2): necks, pooling, FPN, auxiliary head, loss over all pixels, `poly` rate."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from tests.oracles.torch_vit import ViT

POOLS = (1, 2, 3, 6)


def resized(x: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    return F.interpolate(x, tuple(shape), mode="bilinear", align_corners=False)


class Doubled(nn.Module):
    """A transposed convolution of 2 x 2 with stride 2; the weight [out, in, 2, 2] is that of a correlation."""

    def __init__(self, width: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(width, width, 2, 2)), nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv_transpose2d(x, self.weight.flip(2, 3).transpose(0, 1), self.bias, stride=2)


class Necks(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.up4_0, self.up4_1, self.up2, self.up4_bn = Doubled(width), Doubled(width), Doubled(width), nn.BatchNorm2d(width)

    def forward(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        first = self.up4_1(F.gelu(self.up4_bn(self.up4_0(maps[0]))))
        return [first, self.up2(maps[1]), maps[2], F.max_pool2d(maps[3], 2)]


class ConvNorm(nn.Module):
    def __init__(self, inputs: int, outputs: int, side: int):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=False), nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.conv(x)).relu()


class Head(nn.Module):
    def __init__(self, width: int, channels: int, classes: int):
        super().__init__()
        for i in range(3):
            self.add_module(f"lateral_{i}", ConvNorm(width, channels, 1))
            self.add_module(f"fpn_{i}", ConvNorm(channels, channels, 3))
        for side in POOLS:
            self.add_module(f"pool_{side}", ConvNorm(width, channels, 1))
        self.bottleneck = ConvNorm(width + 4 * channels, channels, 3)
        self.fpn_bottleneck = ConvNorm(4 * channels, channels, 3)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        top = maps[3]
        pooled = [resized(self.get_submodule(f"pool_{side}")(F.adaptive_avg_pool2d(top, side)), top.shape[2:]) for side in POOLS]
        levels = [self.get_submodule(f"lateral_{i}")(maps[i]) for i in range(3)]
        levels.append(self.bottleneck(torch.cat([top, *pooled], 1)))
        for i in (2, 1, 0):
            levels[i] = levels[i] + resized(levels[i + 1], levels[i].shape[2:])
        fused = [self.get_submodule(f"fpn_{i}")(levels[i]) for i in range(3)] + [levels[3]]
        together = torch.cat([resized(x, fused[0].shape[2:]) for x in fused], 1)
        return self.classifier(self.fpn_bottleneck(together).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Auxiliary(nn.Module):
    def __init__(self, width: int, classes: int):
        super().__init__()
        self.conv_0, self.classifier = ConvNorm(width, 256, 3), nn.Linear(256, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.conv_0(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Segmenter(nn.Module):
    def __init__(self, backbone: ViT, width: int, taps: tuple[int, ...], channels: int, classes: int):
        super().__init__()
        self.backbone, self.taps = backbone, taps
        self.necks, self.head, self.auxiliary = Necks(width), Head(width, channels, classes), Auxiliary(width, classes)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        stages = self.backbone(images)
        tokens = [self.backbone.norm(stages.blocks[tap])[:, 1:] for tap in self.taps]
        shape = stages.prenorm.shape
        pyramid = self.necks([x.transpose(1, 2).reshape(shape) for x in tokens])
        return self.head(pyramid), self.auxiliary(pyramid[2])


def pixel_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The mean over all pixels; ignored ones (-1) are 0."""
    return F.cross_entropy(resized(logits, targets.shape[1:]), targets, ignore_index=-1, reduction="none").mean()


def layer(name: str, depth: int) -> int:
    if name.startswith(("backbone.cls_token", "backbone.pos_embed", "backbone.patch_embed")):
        return 0
    return int(name.split(".")[2]) + 1 if name.startswith("backbone.blocks.") else depth + 1


class Trainer:
    """`step(images, targets)` is one update; it returns the loss before it."""

    def __init__(self, model: Segmenter, *, depth: int, decay: float, weight_decay: float, peak: float, warmup: int, total: int):
        self.model, self.done, self.peak, self.warmup, self.total = model, 0, peak, warmup, total
        groups = [
            {
                "params": [parameter],
                "weight_decay": 0.0 if parameter.ndim == 1 else weight_decay,
                "scale": decay ** (depth + 1 - layer(name, depth)),
            }
            for name, parameter in model.named_parameters()
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999))

    def rate(self) -> float:
        poly = self.peak * (1 - self.done / self.total)
        return poly * (1 - (1 - self.done / self.warmup) * (1 - 1e-6)) if self.done < self.warmup else poly

    def step(self, images: torch.Tensor, targets: torch.Tensor) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate() * group["scale"]
        self.optimizer.zero_grad(set_to_none=True)
        main, auxiliary = self.model(images)
        loss = pixel_loss(main, targets) + 0.4 * pixel_loss(auxiliary, targets)
        loss.backward()
        self.optimizer.step()
        self.done += 1
        return loss.item()
