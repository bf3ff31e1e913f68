"""The vision transformer of DINO, iBOT and SERE as a Linen module; its parameter paths mirror timm's.

Pre-norm blocks, learned cls token and position embedding, exact GELU, LayerNorm epsilon 1e-6 (SPEC of all three methods).
Parameters are float32; matrix products run in `dtype`; LayerNorm and the attention's softmax in float32.
"""

from __future__ import annotations

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Bool, Float, Int

from sere_jax.models.init import block_init, cls_init, patch_init
from sere_jax.ops.positions import sincos_positions
from sere_jax.ops.products import attend, attention_weights, computed_once, dense_product, gelu
from sere_jax.ops.resize import resize_position_embedding
from sere_jax.types import Features

Remat = Literal["none", "dots", "full"]
Positions = Literal["learned", "sincos_rows", "sincos_columns"]


def _layer_norm(name: str, epsilon: float) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=epsilon, dtype=jnp.float32, use_fast_variance=False, name=name)


class PatchProjection(nn.Module):
    """Non-overlapping patches times one matrix, which equals a strided convolution."""

    width: int
    patch_size: int
    dtype: Any
    init_rule: str = "normal"

    @nn.compact
    def __call__(self, images: Float[jax.Array, "b H W c"]) -> Float[jax.Array, "b h w d"]:
        _, height, width, channels = images.shape
        p, h, w = self.patch_size, height // self.patch_size, width // self.patch_size
        init = patch_init(self.init_rule, self.width, p * p * channels)
        kernel = self.param("kernel", init.first, (p, p, channels, self.width), jnp.float32)
        bias = self.param("bias", init.second, (self.width,), jnp.float32)
        patches = rearrange(images[:, : h * p, : w * p], "b (h p) (w q) c -> b h w (p q c)", p=p, q=p)
        return patches.astype(self.dtype) @ kernel.reshape(-1, self.width).astype(self.dtype) + bias.astype(self.dtype)


class PatchEmbed(nn.Module):
    """The patch projection, one level down as in timm (`patch_embed/proj`)."""

    width: int
    patch_size: int
    dtype: Any
    init_rule: str = "normal"

    @nn.compact
    def __call__(self, images: Float[jax.Array, "b H W c"]) -> Float[jax.Array, "b h w d"]:
        return PatchProjection(self.width, self.patch_size, self.dtype, self.init_rule, name="proj")(images)


class Attention(nn.Module):
    """Multi-head self-attention with a fused qkv projection; the softmax is float32. `weights` returns them beside the result."""

    heads: int
    dtype: Any
    init_rule: str = "normal"
    weights: bool = False

    @nn.compact
    def __call__(self, x: Float[jax.Array, "b n d"]) -> tuple[Float[jax.Array, "b n d"], Float[jax.Array, "b m n n"] | None]:
        d = x.shape[-1]
        init = block_init(self.init_rule, d)
        qkv = nn.Dense(3 * d, dtype=self.dtype, kernel_init=init.first, dot_general=dense_product, name="qkv")(x)
        q, k, v = rearrange(qkv, "b n (three m e) -> three b m n e", three=3, m=self.heads)
        mixed = rearrange(attend(q, k, v), "b m n e -> b n (m e)")
        project = nn.Dense(d, dtype=self.dtype, kernel_init=init.second, dot_general=dense_product, name="proj")
        return project(mixed), attention_weights(q, k) if self.weights else None


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between, four times as wide inside."""

    dtype: Any
    init_rule: str = "normal"

    @nn.compact
    def __call__(self, x: Float[jax.Array, "b n d"]) -> Float[jax.Array, "b n d"]:
        d = x.shape[-1]
        init = block_init(self.init_rule, d).second
        hidden = nn.Dense(4 * d, dtype=self.dtype, kernel_init=init, dot_general=dense_product, name="fc1")(x)
        return nn.Dense(d, dtype=self.dtype, kernel_init=init, dot_general=dense_product, name="fc2")(gelu(hidden))


class Block(nn.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x)); `keep` [b, 2] scales each branch per example (drop path).

    The branches are computed in `dtype`. They are added to x in float32, as under PyTorch's autocast.
    """

    heads: int
    dtype: Any
    init_rule: str = "normal"
    norm_eps: float = 1e-6
    attention: bool = False  # return its weights beside the tokens

    @nn.compact
    def __call__(self, x: Float[jax.Array, "b n d"], keep: Float[jax.Array, "b 2"] | None) -> tuple[Any, Any]:
        normed = computed_once(_layer_norm("norm1", self.norm_eps)(computed_once(x))).astype(self.dtype)
        attended, attention = Attention(self.heads, self.dtype, self.init_rule, self.attention, name="attn")(normed)
        x = x + _scaled(attended, keep, 0)
        normed = computed_once(_layer_norm("norm2", self.norm_eps)(computed_once(x))).astype(self.dtype)
        x = x + _scaled(Mlp(self.dtype, self.init_rule, name="mlp")(normed), keep, 1)
        return x, attention


def _scaled(branch: jax.Array, keep: jax.Array | None, which: int) -> jax.Array:
    """The branch times its drop-path scale, in float32: bfloat16 would round 1 / (1 - rate) by up to 0.4 %."""
    return branch if keep is None else branch.astype(jnp.float32) * keep[:, which, None, None]


class _ScannedBlock(Block):
    """A `Block` with the signature that `nn.scan` expects: the tokens are the carry, and nothing is collected."""

    def __call__(self, x: jax.Array, keep: jax.Array | None) -> tuple[jax.Array, None]:
        # No attention is collected: the scan would keep every layer's matrix alive.
        return super().__call__(x, keep)[0], None


class ViT(nn.Module):
    """Images [b, H, W, c], normalised, any size of at least one patch -> `Features`.

    `scan_blocks` compiles one block and loops it over stacked parameters: `blocks/...` with a leading depth axis replaces
    `blocks_0/...`. Without `remat` this stores the activations of all layers and needs more memory than separate blocks.
    """

    width: int = 384
    depth: int = 12
    heads: int = 6
    patch_size: int = 16
    image_size: int = 224
    in_channels: int = 3
    drop_path: float = 0.0
    dtype: Any = jnp.float32
    scan_blocks: bool = False
    remat: Remat = "none"
    mask_token: bool = False
    init_rule: str = "normal"  # models/init.py
    positions: Positions = "learned"  # the other two are tables that training does not move
    norm_eps: float = 1e-6  # LayerNorm's epsilon; Hugging Face's ViTs have others

    @nn.compact
    def __call__(
        self,
        images: Float[jax.Array, "b H W c"],
        *,
        masks: Bool[jax.Array, "b h w"] | None = None,
        visible: Int[jax.Array, "b k"] | None = None,
        drop_path_noise: Float[jax.Array, "b l 2"] | None = None,
        layers: tuple[int, ...] = (),
        layers_norm: Literal["pre", "post"] = "pre",
        attention: bool = False,
    ) -> Features:
        """Compute tokens.

        Args:
          images: normalised pixels.
          masks: patches that the mask token replaces.
          visible: flat positions of the patches to keep; `patches` is then [b, 1, k, d] in their order.
          drop_path_noise: uniform in [0, 1), one number for each branch. It switches stochastic depth on, at rates that rise
            linearly from 0 to `drop_path`.
          layers: 0-based blocks whose tokens are returned as well (unrolled blocks only).
          layers_norm: "post" applies the final LayerNorm to those tokens.
          attention: return the last block's attention (unrolled blocks only).
        """
        x, grid = self._embed(images, masks)
        if visible is not None:
            patches = jnp.take_along_axis(x[:, 1:], visible[..., None], axis=1)
            x, grid = jnp.concatenate([x[:, :1], patches], axis=1), (1, visible.shape[1])
        keep = None if drop_path_noise is None or self.drop_path == 0 else _keep(drop_path_noise, self.drop_path)
        if self.scan_blocks:
            if layers or attention:
                raise ValueError("layers and attention are not collected from scanned blocks; build the ViT with scan_blocks=False")
            x = self._scanned(x, keep)
            collected, last_attention = dict[int, jax.Array](), None
        else:
            x, collected, last_attention = self._unrolled(x, keep, layers, attention)
        norm = _layer_norm("norm", self.norm_eps)
        normed = norm(x)
        if layers_norm == "post":
            collected = {i: norm(tokens) for i, tokens in collected.items()}
        patches, patches_prenorm = (tokens[:, 1:].reshape(x.shape[0], *grid, -1) for tokens in (normed, x))
        return Features(normed[:, 0], patches, patches_prenorm, tuple(collected[i] for i in layers), last_attention)

    def _embed(self, images: jax.Array, masks: jax.Array | None) -> tuple[jax.Array, tuple[int, int]]:
        if images.shape[-1] != self.in_channels:
            raise ValueError(f"images have {images.shape[-1]} channels; this ViT was built with in_channels={self.in_channels}")
        x = PatchEmbed(self.width, self.patch_size, self.dtype, self.init_rule, name="patch_embed")(images)
        x = x.astype(jnp.float32)  # the blocks add to it in float32 too, because the relations read the sum
        b, h, w, d = x.shape
        if self.mask_token:
            token = self.param("mask_token", nn.initializers.zeros, (1, d), jnp.float32)
            x = x if masks is None else jnp.where(masks[..., None], token, x)
        cls = self.param("cls_token", cls_init(self.init_rule), (1, 1, d), jnp.float32)
        stored = self.image_size // self.patch_size
        positions = self.param("pos_embed", self._start_positions, (1, 1 + stored * stored, d), jnp.float32)
        tokens = jnp.concatenate([jnp.broadcast_to(cls, (b, 1, d)), x.reshape(b, h * w, d)], axis=1)
        return tokens + resize_position_embedding(positions, (h, w)), (h, w)

    def _start_positions(self, key: jax.Array, shape: tuple[int, int, int], dtype: Any) -> jax.Array:
        if self.positions == "learned":
            return nn.initializers.normal(0.02)(key, shape, dtype)
        side = self.image_size // self.patch_size
        return jnp.asarray(sincos_positions(self.width, (side, side), "rows" if self.positions == "sincos_rows" else "columns"), dtype)

    def _unrolled(
        self, x: jax.Array, keep: jax.Array | None, layers: tuple[int, ...], attention: bool
    ) -> tuple[jax.Array, dict[int, jax.Array], Any]:
        block_type = _rematerialised(Block, self.remat, scanned=False)
        collected, weights = {}, None
        for i in range(self.depth):
            asked = attention and i == self.depth - 1
            block = block_type(self.heads, self.dtype, self.init_rule, self.norm_eps, asked, name=f"blocks_{i}")
            x, weights = block(x, None if keep is None else keep[:, i])
            if i in layers:
                collected[i] = x
        return x, collected, weights

    def _scanned(self, x: jax.Array, keep: jax.Array | None) -> jax.Array:
        scanned = nn.scan(
            _rematerialised(_ScannedBlock, self.remat, scanned=True),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast if keep is None else 1,
            length=self.depth,
        )
        return scanned(self.heads, self.dtype, self.init_rule, self.norm_eps, name="blocks")(x, keep)[0]


def _rematerialised(block: type[nn.Module], remat: Remat, *, scanned: bool) -> Any:
    if remat == "none":
        return block
    policy = jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims if remat == "dots" else None
    # Outside a loop the compiler would merge the second computation with the first, which stores the activations again.
    return nn.remat(block, policy=policy, prevent_cse=not scanned)


def _keep(noise: Float[jax.Array, "b l 2"], drop_path: float) -> Float[jax.Array, "b l 2"]:
    """Uniform noise -> 0 where a branch is dropped, 1 / (1 - rate) where it is kept; the rates rise linearly over depth."""
    rates = jnp.linspace(0.0, drop_path, noise.shape[1])[:, None]
    return (noise >= rates) / (1.0 - rates)
