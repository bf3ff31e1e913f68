"""Load the backbone of any checkpoint, and call it on images."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from sere_jax.buckets import Location
from sere_jax.interop import resnet, timm
from sere_jax.interop.tables import InteropError
from sere_jax.models.norm import join_statistics, split_statistics
from sere_jax.models.resnet import ResNet
from sere_jax.models.vit import ViT
from sere_jax.types import Features, PyTree
from sere_jax.weights import images as pictures
from sere_jax.weights.beside import Preprocess
from sere_jax.weights.read import read_weights

_log = logging.getLogger(__name__)

DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True, repr=False)
class Backbone:
    """A frozen vision transformer or ResNet: `backbone(images)` computes the `Features` of images [b, H, W, c].

    Images are normalised floats; `prepare` makes them from files, Pillow images and arrays, and `preprocess` says how. Images may
    have any size of at least one patch: position embeddings are resized by DINO's rule, and rows and columns beyond
    the last whole patch are not seen, as with a strided convolution.

    `apply(params, images)` and `init(seed)` serve callers with other parameters. The running statistics of a ResNet are among the
    `params`, as `mean` and `var`. `about["report"]` has lines on what was recognised in a file, taken from it and left.

    Example:
      >>> backbone = load_backbone("RUN")
      >>> features = backbone(backbone.prepare("photo.jpg"))
      >>> features.cls.shape, features.patches.shape
      ((1, 48), (1, 4, 4, 48))
    """

    module: ViT | ResNet
    params: PyTree
    preprocess: Preprocess
    about: dict[str, Any] = field(default_factory=dict)

    def __call__(self, images: Any, *, layers: Any = (), attention: bool = False) -> Features:
        """Compute the features of normalised float images [b, H, W, c]; each new shape is compiled once.

        Args:
          images: as `prepare` makes them. An array of b = 0 images gives features of 0 images.
          layers: number or numbers of blocks whose tokens [b, 1 + h w, d] are wanted too, from 0, or back from -1.
          attention: the attention of the last block is wanted too.

        Raises BackboneError for images, layers or attention that this backbone cannot take.

        Example:
          >>> backbone = load_backbone("RUN")
          >>> features = backbone(backbone.prepare(["photo.jpg"] * 2), layers=-1, attention=True)
          >>> features.layers[0].shape, features.attention.shape
          ((2, 17, 48), (2, 3, 17, 17))
        """
        wanted = pictures.blocks(layers, attention, self.module)
        images = pictures.check(images, self.module)
        if images.shape[0]:
            return self.apply(self.params, images, layers=wanted, attention=bool(attention))
        one = jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype)  # the network's reshapes cannot infer sizes from no image
        features = jax.eval_shape(partial(self.apply, layers=wanted, attention=bool(attention)), self.params, one)
        return jax.tree.map(lambda leaf: jnp.zeros((0, *leaf.shape[1:]), leaf.dtype), features)

    def prepare(self, images: Any) -> Float[np.ndarray, "b S S c"]:
        """Make the images that this backbone takes, as evaluations do: decoded, resized, cropped to the centre square, normalised.

        Args:
          images: a path, a Pillow image, an array [H, W, c] or [c, H, W] of uint8 or uint16 levels, a stack of such arrays, or a
            list of any of these. Numbers of another type are taken where `preprocess.value_range` says what they mean.

        Raises BackboneError, which names the image, for one that cannot be read.

        Example:
          >>> backbone = load_backbone("RUN")
          >>> backbone.prepare(["photo.jpg", np.zeros((20, 30, 3), np.uint8)]).shape
          (2, 16, 16, 3)
        """
        return pictures.prepare(images, self.preprocess, self.module.in_channels)

    def __repr__(self) -> str:
        """One line with architecture and origin, without parameters and config."""
        parts = [_architecture(self.module), *(f"{key}={self.about[key]!r}" for key in ("source", "network") if self.about.get(key))]
        if self.about.get("step") is not None:
            parts.append(f"step={self.about['step']}")
        return f"Backbone({', '.join(parts)}, images of {self.preprocess.size} pixels)"

    def apply(
        self,
        params: PyTree,
        images: Float[Any, "b H W c"],
        *,
        layers: tuple[int, ...] = (),
        layers_norm: Literal["pre", "post"] = "pre",
        attention: bool = False,
    ) -> Features:
        """Compute features with other parameters. Nothing is checked, so it suits loops and `jax.jit`; layers are counted from 0.

        The tokens of `layers` are those before (`pre`) or after (`post`) the final LayerNorm.

        Example:
          >>> backbone = load_backbone("RUN")
          >>> images = backbone.prepare("photo.jpg")
          >>> backbone.apply(backbone.init(seed=1), images).cls.shape
          (1, 48)
        """
        return _apply(self.module, params, images, layers, layers_norm, attention)

    def init(self, seed: int) -> PyTree:
        """Random parameters, as training starts with.

        Example:
          >>> sorted(load_backbone("RUN").init(seed=1))
          ['blocks_0', 'blocks_1', 'cls_token', 'norm', 'patch_embed', 'pos_embed']
        """
        side = self.module.image_size
        images = jnp.zeros((1, side, side, self.module.in_channels))
        variables = jax.jit(self.module.init)(jax.random.key(seed), images)
        return join_statistics(variables["params"], variables.get("batch_stats", {}))


def _architecture(module: ViT | ResNet) -> str:
    if isinstance(module, ResNet):
        return f"ResNet of {'-'.join(map(str, module.stages))} blocks, width {module.width}"
    return f"ViT of {module.depth} blocks, width {module.width}, {module.heads} heads, patches of {module.patch_size} pixels"


@partial(jax.jit, static_argnums=(0, 3, 4, 5))
def _apply(module: ViT | ResNet, params: PyTree, images: jax.Array, layers: tuple[int, ...], layers_norm: str, attention: bool) -> Any:
    norm: Any = {"layers_norm": layers_norm} if layers else {}  # a ResNet has no layers
    return module.apply(split_statistics(params), images, layers=layers, attention=attention, **norm)


def load_backbone(
    source: str | Location,
    *,
    network: str = "",
    step: int | None = None,
    heads: int = 0,
    image_size: int = 0,
    dtype: str = "float32",
    ignore: Iterable[str] = (),
) -> Backbone:
    """Load the backbone of any checkpoint; docs/weights.md has a table of formats.

    Args:
      source: a path, or gs://BUCKET/NAME: a run's workdir, its `checkpoints` directory or one step in it; an exported file; a
        `.safetensors`, or a `.pth` of PyTorch, with the names of timm, DINO, iBOT, SERE, MoCo v3 or Hugging Face; a directory that
        `transformers` reads.
      network: teacher | student; "": the one that the recipe evaluates, or the one that the file holds.
      step: of a run's checkpoint; the newest by default.
      heads: attention heads of a ViT, for files that do not state them; the tensors do not show the number.
      image_size: pixels a side to resize the stored position embedding to; 0: it stays. Images of any size can be given
        either way.
      dtype: of the activations, float32 | bfloat16. Parameters are float32.
      ignore: patterns (`head.*`) of tensors to leave out; they are named in the report.

    Raises:
      CheckpointError: no checkpoint, or a damaged one. FileError: a file that cannot be read.
      InteropError: tensors that do not fit, all listed; unknown or contradicting heads; a network that the source lacks;
        an unknown dtype.

    Example:
      >>> import sere_jax
      >>> backbone = sere_jax.load_backbone("RUN")
      >>> backbone
      Backbone(ViT of 2 blocks, width 48, 3 heads, patches of 4 pixels, source='RUN', network='teacher', step=7, images of 16 pixels)
      >>> backbone(backbone.prepare("photo.jpg")).cls.shape
      (1, 48)
    """
    try:
        activations = jnp.dtype(dtype).name
    except TypeError:
        activations = str(dtype)
    if activations not in DTYPES:
        raise InteropError(f"dtype: found {dtype!r}, expected one of {', '.join(DTYPES)}")
    weights = read_weights(source, network=network, step=step, heads=heads, image_size=image_size, with_heads=False, ignore=ignore)
    for line in weights.about.get("report", ()):
        _log.info("%s: %s", source, line)
    params = {name: value for name, value in weights.params["backbone"].items() if name != "mask_token"}
    params = join_statistics(params, weights.batch_stats.get("backbone", {}))
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    return Backbone(_module(weights.architecture, activations), params, weights.preprocess, weights.about)


def _module(sizes: timm.Architecture | resnet.Sizes, dtype: str) -> ViT | ResNet:
    shared: dict[str, Any] = {"image_size": sizes.image_size, "in_channels": sizes.in_channels, "dtype": jnp.dtype(dtype)}
    if isinstance(sizes, resnet.Sizes):
        return ResNet(stages=sizes.stages, stem=sizes.width, running_statistics=True, **shared)
    return ViT(width=sizes.width, depth=sizes.depth, heads=sizes.heads, patch_size=sizes.patch_size, norm_eps=sizes.norm_eps, **shared)
