"""A backbone with a head for segmentation on top: what an evaluation trains."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from sere_jax.models.dense.upernet import FcnHead, LinearHead, Necks, TokenHead, UperNet
from sere_jax.models.resnet import ResNet
from sere_jax.ops.pooling import resize_bilinear

Head = Literal["linear", "tokens", "upernet"]
HEADS: tuple[Head, ...] = ("linear", "tokens", "upernet")
AUXILIARY = 256  # channels of the auxiliary head
PYRAMID = 4  # maps that UperNet takes


class Logits(NamedTuple):
    """Logits of the classes on a grid over the image; the auxiliary head's are for the loss alone, None where there is none."""

    main: Float[jax.Array, "b h w k"]
    auxiliary: Float[jax.Array, "b i j k"] | None


class Keep(NamedTuple):
    """The factor of each channel before the two classifiers: 0 where dropout removes it, 1 / (1 - rate) elsewhere."""

    main: Float[jax.Array, "b c"]
    auxiliary: Float[jax.Array, "b e"]


class Segmenter(nn.Module):
    """Images [b, H, W, c], normalised -> `Logits`.

    `tokens` classifies the patch tokens before the backbone's final norm by a `TokenHead`.

    `taps` are the blocks of a ViT (from 0) whose tokens are read, each after the backbone's final norm. `linear` concatenates them
    before a `LinearHead`; `upernet` takes four of them, makes a pyramid by `Necks`, and adds an auxiliary head on the third.

    A ResNet has `taps=()`. `linear` and `tokens` read its last map; for `tokens` it needs no LayerNorm, and the logits are interpolated to
    twice their size. `upernet` takes the maps of its four stages as the pyramid. With `frozen` no gradient reaches the backbone.
    """

    backbone: nn.Module
    classes: int
    head: Head = "upernet"
    taps: tuple[int, ...] = (3, 5, 7, 11)
    channels: int = 384  # of UperNet's convolutions
    frozen: bool = False
    running: bool = False  # BatchNorms use their running statistics
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[jax.Array, "b H W c"], *, drop_path_noise: Float[jax.Array, "b l 2"] | None = None, keep: Keep | None = None
    ) -> Logits:
        """Compute the logits; `drop_path_noise` switches a ViT's stochastic depth on, `keep` dropout before the classifiers."""
        if self.head == "tokens":
            return Logits(self._tokens(images, drop_path_noise), None)
        maps = self._maps(images, drop_path_noise)
        if self.head == "linear":
            head = LinearHead(self.classes, self.running, name="head")
            return Logits(head(jnp.concatenate(maps, axis=-1), keep and keep.main), None)
        pyramid = Necks(self.running, self.dtype, name="necks")(maps) if self.taps else maps
        main = UperNet(self.classes, self.channels, self.running, self.dtype, name="head")(pyramid, keep and keep.main)
        auxiliary = FcnHead(self.classes, AUXILIARY, self.running, self.dtype, name="auxiliary")
        return Logits(main, auxiliary(pyramid[2], keep and keep.auxiliary))

    def _tokens(self, images: jax.Array, noise: jax.Array | None) -> Float[jax.Array, "b h w k"]:
        is_resnet = isinstance(self.backbone, ResNet)
        tokens = jnp.asarray(self.backbone(images, drop_path_noise=noise).patches_prenorm)
        tokens = jax.lax.stop_gradient(tokens) if self.frozen else tokens
        logits = TokenHead(self.classes, norm=not is_resnet, name="head")(tokens)
        return resize_bilinear(logits, (2 * logits.shape[1], 2 * logits.shape[2])) if is_resnet else logits

    def _maps(self, images: jax.Array, noise: jax.Array | None) -> list[jax.Array]:
        if self.taps:
            features = self.backbone(images, drop_path_noise=noise, layers=self.taps, layers_norm="post")
            height, width = features.patches.shape[1:3]
            maps = [jnp.asarray(tokens)[:, 1:].reshape(images.shape[0], height, width, -1) for tokens in features.layers]
        elif self.head == "upernet":
            maps = list(self.backbone(images, maps=True).maps)
        else:
            maps = [jnp.asarray(self.backbone(images, drop_path_noise=noise).patches)]
        return [jax.lax.stop_gradient(x) for x in maps] if self.frozen else maps
