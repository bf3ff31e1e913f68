"""Any checkpoint -> a function from images to `Features`."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from sere_jax.interop import resnet, timm
from sere_jax.models.norm import join_statistics, split_statistics
from sere_jax.models.resnet import ResNet
from sere_jax.models.vit import ViT
from sere_jax.types import Features, PyTree
from sere_jax.weights.read import Preprocess, read_weights

_log = logging.getLogger(__name__)


@dataclass(frozen=True, repr=False)
class Backbone:
    """A frozen vision transformer or ResNet: `backbone(images)` with normalised float images [b, H, W, c] gives `Features`.

    `preprocess` says how the images are to be prepared. Any image size works: position embeddings are resized by the
    ViT's own rule. `apply(params, images)` and `init(seed)` are for those who bring their own parameters. A ResNet's running
    statistics stand among `params`, as `mean` and `var`. `about["report"]` are lines that say what was recognised in a file,
    taken from it and left.
    """

    module: ViT | ResNet
    params: PyTree
    preprocess: Preprocess
    about: dict[str, Any] = field(default_factory=dict)

    def __call__(self, images: Float[Any, "b H W c"], *, layers: tuple[int, ...] = (), attention: bool = False) -> Features:
        """Compute features, compiled once for each shape; `layers` (0-based) and `attention` (last block) on request."""
        return self.apply(self.params, images, layers=layers, attention=attention)

    def __repr__(self) -> str:
        """One line: what it is and where it comes from; not the parameters, nor the config that they were trained with."""
        told = [_architecture(self.module), *(f"{key}={self.about[key]!r}" for key in ("source", "network") if self.about.get(key))]
        if self.about.get("step") is not None:
            told.append(f"step={self.about['step']}")
        return f"Backbone({', '.join(told)}, images of {self.preprocess.size} pixels)"

    def apply(self, params: PyTree, images: Float[Any, "b H W c"], *, layers: tuple[int, ...] = (), attention: bool = False) -> Features:
        """The same with other parameters."""
        return _apply(self.module, params, images, layers, attention)

    def init(self, seed: int) -> PyTree:
        """Parameters at random, as training starts with."""
        side = self.module.image_size
        images = jnp.zeros((1, side, side, self.module.in_channels))
        made = jax.jit(self.module.init)(jax.random.key(seed), images)
        return join_statistics(made["params"], made.get("batch_stats", {}))


def _architecture(module: ViT | ResNet) -> str:
    if isinstance(module, ResNet):
        return f"ResNet of {'-'.join(map(str, module.stages))} blocks, width {module.width}"
    return f"ViT of {module.depth} blocks, width {module.width}, {module.heads} heads, patches of {module.patch_size} pixels"


@partial(jax.jit, static_argnums=(0, 3, 4))
def _apply(module: ViT | ResNet, params: PyTree, images: jax.Array, layers: tuple[int, ...], attention: bool) -> Any:
    return module.apply(split_statistics(params), images, layers=layers, attention=attention)


def load_backbone(
    source: str | Path,
    *,
    network: str = "",
    step: int | None = None,
    heads: int = 0,
    image_size: int = 0,
    dtype: str = "float32",
    ignore: Iterable[str] = (),
) -> Backbone:
    """Load the backbone of any checkpoint; docs/weights.md has the table of formats.

    Args:
      source: a run's workdir, its `checkpoints` directory or one step in it; an exported file; a `.safetensors`, or a `.pth`
        of PyTorch, by the names of timm, DINO, iBOT, SERE, MoCo v3 or Hugging Face; a directory that `transformers` reads.
      network: teacher | student; "": the one that the recipe evaluates, or the one that the file holds.
      step: of a checkpoint; the newest by default.
      heads: of the ViT, for files that do not say it; it leaves no trace in the tensors.
      image_size: pixels a side to resize the stored position embedding to; 0: it stays. Images of any size can be given
        either way, by DINO's own rule.
      dtype: of the activations, float32 | bfloat16. Parameters are float32.
      ignore: patterns (`head.*`) of tensors that a file may hold beyond those of the backbone.

    Raises:
      CheckpointError: no checkpoint, or a damaged one. FileError: a file that cannot be read.
      InteropError: tensors that do not fit, all listed; heads unknown; a network that is not there.
    """
    weights = read_weights(source, network=network, step=step, heads=heads, image_size=image_size, with_heads=False, ignore=ignore)
    for line in weights.about.get("report", ()):
        _log.info("%s: %s", source, line)
    params = {name: value for name, value in weights.params["backbone"].items() if name != "mask_token"}
    params = join_statistics(params, weights.batch_stats.get("backbone", {}))
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    return Backbone(_module(weights.architecture, dtype), params, weights.preprocess, weights.about)


def _module(sizes: timm.Architecture | resnet.Sizes, dtype: str) -> ViT | ResNet:
    shared: dict[str, Any] = {"image_size": sizes.image_size, "in_channels": sizes.in_channels, "dtype": jnp.dtype(dtype)}
    if isinstance(sizes, resnet.Sizes):
        return ResNet(stages=sizes.stages, stem=sizes.width, running_statistics=True, **shared)
    return ViT(width=sizes.width, depth=sizes.depth, heads=sizes.heads, patch_size=sizes.patch_size, norm_eps=sizes.norm_eps, **shared)
