"""The names of models and of their choices, with their sizes. It imports no JAX, so that configs can be checked without JAX."""

from __future__ import annotations

# Vision transformers: (width, depth, heads).
VARIANTS: dict[str, tuple[int, int, int]] = {
    "vitti": (192, 12, 3),
    "vits": (384, 12, 6),
    "vitb": (768, 12, 12),
    "vitl": (1024, 24, 16),
}
INITS = ("normal", "mocov3", "mae")  # initialisations of a ViT
POSITIONS = ("learned", "sincos_rows", "sincos_columns")  # position embeddings of a ViT

# Residual networks: (blocks of each stage, channels of the stem).
RESNETS: dict[str, tuple[tuple[int, ...], int]] = {"resnet50": ((3, 4, 6, 3), 64)}
EXPANSION = 4  # output channels of a bottleneck block / its inner channels
WIDTH_OF_STEM = 8 * EXPANSION  # channels of the last of the four maps / channels of the stem
