"""Any checkpoint -> a function from images to `Features`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float
from ml_collections import ConfigDict

from sere_jax import build
from sere_jax import config as rules
from sere_jax.checkpoint import CheckpointError, read_config, read_state
from sere_jax.interop import dino, timm
from sere_jax.interop.files import FileError, read_tensors
from sere_jax.interop.tables import InteropError, nest
from sere_jax.models.vit import ViT
from sere_jax.types import Features, PyTree

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# The field of a saved state that holds a network's parameters.
NETWORKS = {"teacher": "teacher", "student": "params"}


class Preprocess(NamedTuple):
    """How images are prepared: shorter side to `resize` pixels, centre crop of `size`, (pixel / 255 - mean) / std."""

    size: int
    resize: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bicubic"


class Weights(NamedTuple):
    """A backbone's parameters (NumPy, unrolled blocks) and heads, with all that using and exporting them needs."""

    params: dict[str, Any]  # {"backbone": ...} and the heads by name
    architecture: timm.Architecture
    preprocess: Preprocess
    about: dict[str, Any]  # source, network, step, config


@dataclass(frozen=True)
class Backbone:
    """A frozen vision transformer: `backbone(images)` with normalised float images [b, H, W, c] gives `Features`.

    `preprocess` says how the images are to be prepared. Any image size works: position embeddings are resized by the
    ViT's own rule. `apply(params, images)` and `init(seed)` are for those who bring their own parameters.
    """

    module: ViT
    params: PyTree
    preprocess: Preprocess
    about: dict[str, Any] = field(default_factory=dict)

    def __call__(self, images: Float[Any, "b H W c"], *, layers: tuple[int, ...] = (), attention: bool = False) -> Features:
        """Compute features, compiled once for each shape; `layers` (0-based) and `attention` (last block) on request."""
        return self.apply(self.params, images, layers=layers, attention=attention)

    def apply(self, params: PyTree, images: Float[Any, "b H W c"], *, layers: tuple[int, ...] = (), attention: bool = False) -> Features:
        """The same with other parameters."""
        return _apply(self.module, params, images, layers, attention)

    def init(self, seed: int) -> PyTree:
        """Parameters at random, as training starts with."""
        side = self.module.image_size
        images = jnp.zeros((1, side, side, self.module.in_channels))
        return jax.jit(self.module.init)(jax.random.key(seed), images)["params"]


@partial(jax.jit, static_argnums=(0, 3, 4))
def _apply(module: ViT, params: PyTree, images: jax.Array, layers: tuple[int, ...], attention: bool) -> Any:
    return module.apply({"params": params}, images, layers=layers, attention=attention)


def load_backbone(
    source: str | Path,
    *,
    network: str = "",
    step: int | None = None,
    heads: int = 0,
    dtype: str = "float32",
    ignore: Iterable[str] = (),
) -> Backbone:
    """Load the backbone of any checkpoint.

    Args:
      source: a run's workdir, its `checkpoints` directory or one step in it; or a `.safetensors` (an exported one, or any
        with timm's or DINO's names) or an exported `.npz`.
      network: teacher | student; "": the one that the recipe evaluates, or the one that the file holds.
      step: of a checkpoint; the newest by default.
      heads: of the ViT, for files that do not say it; it leaves no trace in the tensors.
      dtype: of the activations, float32 | bfloat16. Parameters are float32.
      ignore: patterns (`head.*`) of tensors that a file may hold beyond those of the backbone.

    Raises:
      CheckpointError: no checkpoint, or a damaged one. FileError: a file that cannot be read.
      InteropError: tensors that do not fit, all listed; heads unknown; a network that is not there.
    """
    weights = read_weights(source, network=network, step=step, heads=heads, ignore=ignore)
    sizes = weights.architecture
    module = ViT(
        width=sizes.width,
        depth=sizes.depth,
        heads=sizes.heads,
        patch_size=sizes.patch_size,
        image_size=sizes.image_size,
        in_channels=sizes.in_channels,
        dtype=jnp.dtype(dtype),
    )
    params = {name: value for name, value in weights.params["backbone"].items() if name != "mask_token"}
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    return Backbone(module, params, weights.preprocess, weights.about)


def read_weights(source: str | Path, *, network: str = "", step: int | None = None, heads: int = 0, ignore: Iterable[str] = ()) -> Weights:
    """What `load_backbone` and the export read, without a device; arguments and errors are `load_backbone`'s."""
    path = Path(source).expanduser()
    if path.is_dir():
        return _from_checkpoint(path, network, step)
    if path.suffix in (".safetensors", ".npz"):
        return _from_file(path, network, heads, ignore)
    raise FileError(f"{path}: expected a workdir, a directory of checkpoints, or a .safetensors or .npz file; {_seen(path)}")


def _seen(path: Path) -> str:
    return f"found a file that ends in {path.suffix!r}" if path.exists() else "it does not exist"


def _from_checkpoint(path: Path, network: str, step: int | None) -> Weights:
    config = ConfigDict(rules.from_json_tree(read_config(path, step)))
    network = network or build.recipe(config).eval_network
    if network not in NETWORKS:
        raise InteropError(f"network: found {network!r}, expected one of {', '.join(NETWORKS)}")
    state, step = read_state(path, step, only=(NETWORKS[network],))
    params = dict(state[NETWORKS[network]])
    if "backbone" not in params:
        raise CheckpointError(f"{path}, step {step}: the {network} has no backbone; found {', '.join(sorted(params))}")
    params["backbone"] = timm.unstack_blocks(params["backbone"])
    about = {"source": str(path), "network": network, "step": step, "config": config.to_dict()}
    return Weights(params, architecture(config), preprocess(config), about)


def architecture(config: ConfigDict) -> timm.Architecture:
    """The sizes of the config's ViT."""
    vit = build.backbone(config)
    return timm.Architecture(vit.width, vit.depth, vit.heads, vit.patch_size, vit.image_size, vit.in_channels)


def preprocess(config: ConfigDict) -> Preprocess:
    """How images are prepared for a network that was trained with the config: at the size of its global crops."""
    size = config.eval.size or config.views.global_size
    return Preprocess(size, config.eval.resize or size * 256 // 224, tuple(config.photometry.mean), tuple(config.photometry.std))


def _from_file(path: Path, network: str, heads: int, ignore: Iterable[str]) -> Weights:
    tensors, metadata = read_tensors(path)
    held = metadata.get("network", "")
    if network and held and network != held:
        raise InteropError(f"{path}: network: found {network!r}, expected {held!r}, the one that the file holds")
    known = metadata.get("architecture", {})
    params = _params(tensors, network or held or "teacher", ignore)
    heads = _heads(path, heads, known, params)
    sizes = timm.architecture_of_params(params["backbone"], heads=heads)
    prepared = metadata.get("preprocess")
    about = {"source": str(path), "network": network or held, "step": metadata.get("step"), "config": metadata.get("config", {})}
    return Weights(params, sizes, _preprocess(prepared) if prepared else _imagenet(sizes.image_size), about)


def _params(tensors: Mapping[str, Any], network: str, ignore: Iterable[str]) -> dict[str, Any]:
    """Whichever of the three layouts the names are in."""
    if any(name.startswith("backbone/") for name in tensors):
        return nest(tensors)
    if any(name.startswith(("teacher.", "student.", "module.", "backbone.")) for name in tensors):
        return dino.from_dino(tensors, network=network, ignore=ignore)
    return {"backbone": timm.from_timm(tensors, ignore=ignore)}


def _heads(path: Path, heads: int, known: Mapping[str, Any], params: Mapping[str, Any]) -> int:
    saved = known.get("heads", 0)
    if heads and saved and heads != saved:
        raise InteropError(f"{path}: heads: found {heads}, expected {saved}, which the file says itself")
    if heads or saved:
        return heads or saved
    width = params["backbone"]["cls_token"].shape[-1]
    raise InteropError(
        f"{path}: heads: unknown, since tensors do not show it; expected heads=N. "
        f"timm's, DINO's and iBOT's ViTs of width {width} have {max(width // 64, 1)}, MoCo v3's ViT-S has 12"
    )


def _preprocess(saved: Mapping[str, Any]) -> Preprocess:
    return Preprocess(saved["size"], saved["resize"], tuple(saved["mean"]), tuple(saved["std"]), saved["interpolation"])


def _imagenet(size: int) -> Preprocess:
    """What timm's, DINO's, iBOT's and SERE's ImageNet models are evaluated with, for files that say nothing."""
    return Preprocess(size, size * 256 // 224)
