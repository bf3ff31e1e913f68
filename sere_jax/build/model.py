"""From a config to its networks: the backbone and the named heads."""

from __future__ import annotations

from collections.abc import Iterable

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

from sere_jax.data.crops.views import ViewRecipe
from sere_jax.models.decoder import PixelDecoder
from sere_jax.models.heads import BarlowProjector, ContrastiveHead, PrototypeHead, RelationHead
from sere_jax.models.resnet import ResNet
from sere_jax.models.variants import RESNETS, VARIANTS, WIDTH_OF_STEM
from sere_jax.models.vit import ViT
from sere_jax.objectives.recipes import RECIPES


def backbone(config: ConfigDict, *, scan_blocks: bool | None = None, running_statistics: bool = False) -> ViT | ResNet:
    """The vision transformer or the ResNet of the config.

    `scan_blocks` overrides the config's value, because evaluations need separate blocks. `running_statistics` makes a ResNet for
    evaluation.
    """
    model = config.model
    if model.name == "resnet":
        return _resnet(config, running_statistics)
    width, depth, heads = VARIANTS.get(model.variant, (0, 0, 0))
    return ViT(
        width=model.width or width,
        depth=model.depth or depth,
        heads=model.heads or heads,
        patch_size=model.patch_size,
        # Positions are stored for a square, as PyTorch's ViTs have them, and resized to a grid of another shape.
        image_size=max(ViewRecipe(**config.views).global_shape),
        in_channels=model.in_channels,
        drop_path=model.drop_path,
        dtype=jnp.dtype(model.dtype),
        scan_blocks=model.scan_blocks if scan_blocks is None else scan_blocks,
        remat=model.remat,
        mask_token=config.masking.kind != "none" and "mae" not in RECIPES[config.recipe].losses,
        init_rule=model.init,
        positions=model.positions,
    )


def heads(config: ConfigDict, names: Iterable[str]) -> dict[str, nn.Module]:
    """The heads of these names.

    `dino` is a prototype head, `mocov3` MoCo v3's head, `mae` a decoder, `batch` Barlow Twins' projector. Others are relation heads.
    """
    dtype = jnp.dtype(config.model.dtype)
    modules: dict[str, nn.Module] = {}
    for name in sorted(names):
        if name == "dino":
            modules[name] = PrototypeHead(**config.head, dtype=dtype)
        elif name == "mocov3":
            modules[name] = _contrastive(config)
        elif name == "mae":
            modules[name] = _decoder(config)
        elif name == "batch" and config.barlow.projector == "mlp":
            modules[name] = BarlowProjector(config.barlow.projector_width, dtype=dtype)
        elif name == "batch":
            modules[name] = RelationHead(dtype=dtype, symmetric=True)
        else:
            modules[name] = RelationHead(dtype=dtype, symmetric=config.relation.symmetric)
    return modules


def _resnet(config: ConfigDict, running_statistics: bool) -> ResNet:
    model = config.model
    stages, stem = RESNETS.get(model.variant, ((model.depth,) * 4, model.width // WIDTH_OF_STEM))
    return ResNet(
        stages=stages,
        stem=stem,
        image_size=max(ViewRecipe(**config.views).global_shape),
        in_channels=model.in_channels,
        dtype=jnp.dtype(model.dtype),
        remat=model.remat != "none",
        zero_init_residual=model.zero_init_residual,
        running_statistics=running_statistics,
    )


def _decoder(config: ConfigDict) -> PixelDecoder:
    values = config.model.patch_size**2 * config.model.in_channels
    mae, dtype = config.mae, jnp.dtype(config.model.dtype)
    return PixelDecoder(values, mae.decoder_width, mae.decoder_depth, mae.decoder_heads, dtype=dtype)


def _contrastive(config: ConfigDict) -> ContrastiveHead:
    mocov3 = config.mocov3
    return ContrastiveHead(
        layers=mocov3.projector_layers,
        hidden=mocov3.hidden,
        width=mocov3.width,
        predictor_last_norm=mocov3.predictor_last_norm,
        dtype=jnp.dtype(config.model.dtype),
    )
