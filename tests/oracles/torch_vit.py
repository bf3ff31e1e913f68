"""The vision transformer in PyTorch, with timm's names for its tensors (SPEC 0 and 1.1); DINO, iBOT and SERE use the same."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F


class Stages(NamedTuple):
    """What a forward pass makes on its way; token axes have cls first."""

    embedded: torch.Tensor  # [b, h w, d], patches times the convolution, before positions
    blocks: list[torch.Tensor]  # [b, 1 + h w, d] after each block
    prenorm: torch.Tensor  # [b, d, h, w], patch tokens after the last block
    cls: torch.Tensor  # [b, d], after the final norm
    patches: torch.Tensor  # [b, h w, d], after the final norm
    attention: torch.Tensor  # [b, m, 1 + h w, 1 + h w], of the last block


class Attention(nn.Module):
    def __init__(self, d: int, heads: int):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(d, 3 * d), nn.Linear(d, d)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) / (d / self.heads) ** 0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2)), weights


class Mlp(nn.Module):
    def __init__(self, d: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, d: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(d, eps=1e-6), nn.LayerNorm(d, eps=1e-6)
        self.attn, self.mlp = Attention(d, heads), Mlp(d)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        attended, weights = self.attn(self.norm1(x))
        x = x + attended
        return x + self.mlp(self.norm2(x)), weights


class PatchEmbed(nn.Module):
    def __init__(self, d: int, patch: int, channels: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, d, patch, stride=patch)


class ViT(nn.Module):
    """Images [b, c, H, W] -> Stages. No drop path: the oracle is compared without it. `masking` adds a mask token (iBOT)."""

    def __init__(self, width: int, depth: int, heads: int, patch_size: int, image_size: int, channels: int = 3, masking: bool = False):
        super().__init__()
        side = image_size // patch_size
        self.patch_embed = PatchEmbed(width, patch_size, channels)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + side * side, width))
        if masking:
            self.mask_token = nn.Parameter(torch.zeros(1, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, images: torch.Tensor, masks: torch.Tensor | None = None) -> Stages:
        """`masks` [b, h, w]: True puts the mask token in the place of the patch's embedding, before positions."""
        grid = self.patch_embed.proj(images)
        h, w = grid.shape[2:]
        embedded = grid.flatten(2).transpose(1, 2)
        shown = embedded if masks is None else torch.where(masks.flatten(1)[..., None], self.mask_token, embedded)
        x = torch.cat([self.cls_token.expand(len(images), -1, -1), shown], 1) + self.positions(h, w)
        blocks, attention = [], None
        for block in self.blocks:
            x, attention = block(x)
            blocks.append(x)
        normed = self.norm(x)
        prenorm = x[:, 1:].transpose(1, 2).unflatten(2, (h, w))
        return Stages(embedded, blocks, prenorm, normed[:, 0], normed[:, 1:], attention)

    def positions(self, h: int, w: int) -> torch.Tensor:
        """Resized with scale factor (g + 0.1) / stored, unless the token count matches and the grid is square."""
        cls, patches = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        stored = round(patches.shape[1] ** 0.5)
        if h == w == stored:
            return self.pos_embed
        square = patches.unflatten(1, (stored, stored)).permute(0, 3, 1, 2)
        resized = F.interpolate(square, scale_factor=((h + 0.1) / stored, (w + 0.1) / stored), mode="bicubic")
        assert resized.shape[2:] == (h, w)
        return torch.cat([cls, resized.flatten(2).transpose(1, 2)], 1)
