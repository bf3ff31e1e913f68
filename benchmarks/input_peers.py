"""What other pipelines do with one file, re-stated from their descriptions: multi-crop with all photometry on the host.

Each recipe is a function (bytes of an image file) -> list of float32 tensors [3, S, S]. The real ones are wrapped in PyTorch's
DataLoader, whose collation is not counted here, in their favour.
"""

from __future__ import annotations

import importlib
import io
import math
import random
import re
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DECLARED: list[Any] = []  # a library's operators live as long as it does
Recipe = Callable[[bytes], list[Any]]

# (size, scale, probability of blur, of solarise) of the two global crops and of a local one: DINO's recipe with SERE's scales
GLOBAL = ((224, (0.35, 1.0), 1.0, 0.0), (224, (0.35, 1.0), 0.1, 0.2))
LOCAL = (96, (0.05, 0.35), 0.5, 0.0)


def kinds(locals_: int) -> list[tuple[int, tuple[float, float], float, float]]:
    return [*GLOBAL, *[LOCAL] * locals_]


def box(width: int, height: int, scale: tuple[float, float]) -> tuple[int, int, int, int]:
    """RandomResizedCrop's draw (left, top, width, height) with torch's generator, as torchvision does."""
    low, high = torch.log(torch.tensor((3 / 4, 4 / 3)))
    for _ in range(10):
        area = width * height * torch.empty(1).uniform_(*scale).item()
        ratio = torch.exp(torch.empty(1).uniform_(low, high)).item()
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(torch.randint(0, width - w + 1, (1,))), int(torch.randint(0, height - h + 1, (1,))), w, h
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side, side


def hue(image: Image.Image, shift: float) -> Image.Image:
    h, s, v = image.convert("HSV").split()
    turned = np.array(h, np.uint8)
    turned += np.array(int(shift * 255)).astype(np.uint8)
    return Image.merge("HSV", (Image.fromarray(turned), s, v)).convert("RGB")


def jitter(image: Image.Image) -> Image.Image:
    factors = [torch.empty(1).uniform_(1 - a, 1 + a).item() for a in (0.4, 0.4, 0.2)]
    shift = torch.empty(1).uniform_(-0.1, 0.1).item()
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for which in torch.randperm(4).tolist():
        image = hue(image, shift) if which == 3 else enhancers[which](image).enhance(factors[which])
    return image


def to_tensor(image: Image.Image) -> torch.Tensor:
    """ToTensor and Normalize."""
    tensor = torch.from_numpy(np.array(image, np.uint8)).permute(2, 0, 1).contiguous().float().div(255)
    mean, std = (torch.as_tensor(values)[:, None, None] for values in (MEAN, STD))
    return tensor.clone().sub_(mean).div_(std)


def pil_view(
    image: Image.Image, kind: tuple[int, tuple[float, float], float, float]
) -> tuple[torch.Tensor, tuple[int, int, int, int], bool]:
    size, scale, blur, solarize = kind
    left, top, width, height = drawn = box(*image.size, scale)
    view = image.crop((left, top, left + width, top + height)).resize((size, size), Image.Resampling.BICUBIC)
    flip = bool(torch.rand(1) < 0.5)
    if flip:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if torch.rand(1) < 0.8:
        view = jitter(view)
    if torch.rand(1) < 0.2:
        grey = np.array(view.convert("L"))
        view = Image.fromarray(np.dstack([grey, grey, grey]))
    if random.random() <= blur:
        view = view.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))
    if random.random() < solarize:
        view = ImageOps.solarize(view)
    return to_tensor(view), drawn, flip


def dino(locals_: int) -> Recipe:
    """DINO's pipeline: Pillow through torchvision."""
    todo = kinds(locals_)

    def make(data: bytes) -> list[torch.Tensor]:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        return [pil_view(image, kind)[0] for kind in todo]

    return make


def authors(locals_: int) -> Recipe:
    """SERE's: the same views, and for every pair with a global crop the sampling points of both sides, made on the host."""
    todo = kinds(locals_)

    def make(data: bytes) -> list[torch.Tensor]:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        made = [pil_view(image, kind) for kind in todo]
        grids = [
            grid
            for n, (_, one, mirrored) in enumerate(made)
            for m, (_, other, turned) in enumerate(made[:2])
            if n != m
            for grid in overlap_grids(one, mirrored, other, turned, 13 if n < 2 else 6)
        ]
        return [view for view, _, _ in made] + grids

    return make


def overlap_grids(one: Any, mirrored: bool, other: Any, turned: bool, points: int) -> list[torch.Tensor]:
    """Where `points` x `points` of the shared rectangle lie in either view, in [-1, 1]; all -2 where they share nothing."""
    left, top = max(one[0], other[0]), max(one[1], other[1])
    right, bottom = min(one[0] + one[2], other[0] + other[2]), min(one[1] + one[3], other[1] + other[3])
    if right <= left or bottom <= top:
        return [torch.full((points, points, 2), -2.0)] * 2
    grids = []
    for view, flip in ((one, mirrored), (other, turned)):
        x = (torch.linspace(left, right, points) - view[0]) / view[2]
        y = (torch.linspace(top, bottom, points) - view[1]) / view[3]
        rows, columns = torch.meshgrid(y, 1 - x if flip else x, indexing="ij")
        grids.append(torch.stack([columns, rows], -1) * 2 - 1)
    return grids


def albumentations(locals_: int) -> Recipe | None:
    """The same recipe in albumentations (OpenCV: cubic without antialiasing), or None where it is not installed."""
    try:
        A, cv2 = importlib.import_module("albumentations"), importlib.import_module("cv2")
    except ImportError:
        return None
    cv2.setNumThreads(0)

    def chain(kind: tuple[int, tuple[float, float], float, float]) -> Any:
        size, scale, blur, solarize = kind
        return A.Compose(
            [
                A.RandomResizedCrop((size, size), scale=scale, interpolation=cv2.INTER_CUBIC),
                A.HorizontalFlip(p=0.5),
                A.ColorJitter(0.4, 0.4, 0.2, 0.1, p=0.8),
                A.ToGray(p=0.2),
                A.GaussianBlur(blur_limit=0, sigma_limit=(0.1, 2.0), p=blur),
                A.Solarize(p=solarize),
                A.Normalize(MEAN, STD),
            ]
        )

    chains = [chain(kind) for kind in kinds(locals_)]

    def make(data: bytes) -> list[torch.Tensor]:
        image = cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        return [torch.from_numpy(one(image=image)["image"]).permute(2, 0, 1).contiguous() for one in chains]

    return make


def import_transforms() -> Any:
    """torchvision.transforms or None.

    A wheel built for another torch does not find its compiled operators, which transforms do not use: they are declared.
    """
    library = torch.library.Library("torchvision", "FRAGMENT")
    for _ in range(9):
        try:
            return importlib.import_module("torchvision.transforms")
        except ImportError:
            return None
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None:
                return None
            library.define(f"{missing.group(1)}(Tensor x) -> Tensor")
            DECLARED.append(library)
            for name in [name for name in sys.modules if name.startswith("torchvision")]:
                del sys.modules[name]
    return None


def torchvision(locals_: int) -> Recipe | None:
    """DINO's recipe by torchvision itself, or None where it cannot be imported."""
    T = import_transforms()
    if T is None:
        return None

    class Blur:
        def __call__(self, image: Image.Image) -> Image.Image:
            return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))

    def chain(kind: tuple[int, tuple[float, float], float, float]) -> Any:
        size, scale, blur, solarize = kind
        return T.Compose(
            [
                T.RandomResizedCrop(size, scale=scale, interpolation=T.InterpolationMode.BICUBIC),
                T.RandomHorizontalFlip(),
                T.RandomApply([T.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
                T.RandomGrayscale(0.2),
                T.RandomApply([Blur()], p=blur),
                T.RandomSolarize(128, p=solarize),
                T.ToTensor(),
                T.Normalize(MEAN, STD),
            ]
        )

    chains = [chain(kind) for kind in kinds(locals_)]

    def make(data: bytes) -> list[torch.Tensor]:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        return [one(image) for one in chains]

    return make
