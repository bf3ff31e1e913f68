"""One stage of Cascade Mask R-CNN in PyTorch (SPEC 3.3): its two heads, the classes' own codes, GIoU of decoded boxes, weighted losses."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F


class Shared(nn.Sequential):
    """3 x 3 convolutions with ReLU, with or without BatchNorm."""

    def __init__(self, width: int, channels: int, norm: bool):
        layers: list[nn.Module] = []
        for i in range(4):
            layers.append(nn.Conv2d(width if i == 0 else channels, channels, 3, padding=1, bias=not norm))
            layers += [nn.BatchNorm2d(channels), nn.ReLU()] if norm else [nn.ReLU()]
        super().__init__(*layers)


class Stage(nn.Module):
    """Heads for regions [n, d, 7, 7] and [p, d, 14, 14]; the hidden layer reads a map row by row, the channels last."""

    def __init__(self, width: int, channels: int, hidden: int, classes: int):
        super().__init__()
        self.classes = classes
        self.box, self.mask = Shared(width, channels, norm=True), Shared(width, channels, norm=False)
        self.fc, self.classifier = nn.Linear(49 * channels, hidden), nn.Linear(hidden, classes + 1)
        self.codes = nn.Linear(hidden, 4 * classes)
        self.up, self.mask_classifier = nn.ConvTranspose2d(channels, channels, 2, stride=2), nn.Conv2d(channels, classes, 1)

    def boxes(self, regions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = F.relu(self.fc(self.box(regions).permute(0, 2, 3, 1).flatten(1)))
        return self.classifier(x), self.codes(x).reshape(len(x), self.classes, 4)

    def masks(self, regions: torch.Tensor) -> torch.Tensor:
        return self.mask_classifier(F.relu(self.up(self.mask(regions))))


def decoded(codes: torch.Tensor, boxes: torch.Tensor, deviations) -> torch.Tensor:
    codes = codes * torch.tensor(deviations)
    sides, centres = boxes[:, 2:] - boxes[:, :2], (boxes[:, :2] + boxes[:, 2:]) / 2
    centres = centres + codes[:, :2] * sides
    sides = sides * codes[:, 2:].clamp(-math.log(1000 / 16), math.log(1000 / 16)).exp()
    return torch.cat([centres - sides / 2, centres + sides / 2], dim=1)


def giou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    def area(left_top: torch.Tensor, right_bottom: torch.Tensor) -> torch.Tensor:
        return (right_bottom - left_top).clamp(min=0).prod(dim=1)

    shared = area(torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:]))
    union = area(a[:, :2], a[:, 2:]) + area(b[:, :2], b[:, 2:]) - shared
    enclosing = area(torch.minimum(a[:, :2], b[:, :2]), torch.maximum(a[:, 2:], b[:, 2:]))
    return shared / union - (enclosing - union) / enclosing


def loss(stage: Stage, scene: dict[str, torch.Tensor], deviations, weight: float) -> torch.Tensor:
    """The weighted losses: the first rows of the regions, as many as there are objects, are the positive ones."""
    labels, targets = scene["labels"], scene["targets"]
    logits, codes = stage.boxes(scene["box_features"])
    count = len(targets)
    codes_of_labels = codes[torch.arange(count), labels[:count]]
    boxes = decoded(codes_of_labels, scene["boxes"][:count], deviations)
    masks = stage.masks(scene["mask_features"])[torch.arange(count), labels[:count]]
    by_box = 10 * (1 - giou(boxes, targets)).sum() / len(labels)
    by_mask = F.binary_cross_entropy_with_logits(masks, scene["masks"])
    return weight * (F.cross_entropy(logits, labels) + by_box + by_mask)
